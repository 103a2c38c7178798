// The API that the component reads, as a fixture that can go wrong in every way there is.

import { createServer } from 'node:http';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';

import { BLACK, GOOD, PAGE, PLACEHOLDER, TRANSPARENT } from './pictures.mjs';

export const KEY = 'sk_live_test_key';

const HTML = '<!doctype html><title>Sorry</title><p>Something went wrong.';
const half = (bytes) => bytes.subarray(0, bytes.length >> 1);
const damaged = (bytes) => Buffer.from(bytes).fill(0x5a, bytes.length >> 2, bytes.length >> 1);
const send = (response, status, type, body) => response.writeHead(status, {
  'content-type': type, 'content-length': body.length, 'cache-control': 'no-store',
}).end(body);

/** What can be wrong with an image: the reason that the component must give, and how to bring it about. */
export const FAULTS = {
  noUrl: { reason: 'no-url', item: () => ({ url: undefined }) },
  nullUrl: { reason: 'no-url', item: () => ({ url: null }) },
  emptyUrl: { reason: 'no-url', item: () => ({ url: '' }) },
  scriptUrl: { reason: 'bad-url', item: () => ({ url: 'javascript:alert(1)' }) },
  noUrlAtAll: { reason: 'bad-url', item: () => ({ url: 'http://' }) },
  deadHost: { reason: 'unreachable', item: () => ({ url: 'http://127.0.0.1:1/image.png' }) },
  missing: { reason: 'http-404', content: (response) => send(response, 404, 'application/problem+json', '{}') },
  broken: { reason: 'http-500', content: (response) => send(response, 500, 'image/png', GOOD[0]) },
  html: { reason: 'not-an-image', content: (response) => send(response, 200, 'text/html', HTML) },
  htmlAsImage: { reason: 'undecodable', content: (response) => send(response, 200, 'image/png', HTML) },
  nothing: { reason: 'empty', content: (response) => send(response, 200, 'image/png', '') },
  short: { reason: 'undecodable', content: (response, bytes) => send(response, 200, 'image/png', half(bytes)) },
  // A PNG, since its checksums tell: a damaged JPEG is a picture like any other.
  damaged: { reason: 'undecodable', content: (response) => send(response, 200, 'image/png', damaged(GOOD[0])) },
  cutOff: {
    reason: 'unreachable',
    content(response, bytes) {
      response.writeHead(200, { 'content-type': 'image/png', 'content-length': bytes.length });
      response.write(half(bytes), () => response.socket?.destroy());
    },
  },
  silent: { reason: 'timeout', content() {} },
  drips: {
    reason: 'timeout',
    content(response, bytes) {
      response.writeHead(200, { 'content-type': 'image/png', 'content-length': bytes.length });
      response.write(half(bytes));
    },
  },
  black: { reason: 'blank', content: (response) => send(response, 200, 'image/png', BLACK) },
  transparent: { reason: 'blank', content: (response) => send(response, 200, 'image/png', TRANSPARENT) },
};

/** Numbers from 0 to 1 that look random, the same ones for the same seed. */
export function random(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export function shuffled(list, draw) {
  return list.map((value) => [draw(), value]).sort(([one], [other]) => one - other).map(([, value]) => value);
}

export class Feed {
  /** Newest first: `{id, fault, type, bytes}`. */
  images = [];
  /** Overrides the fault of every image. */
  everyImage = null;
  /** Answers `GET /v1/images` in place of the list: `(response) => void`. */
  list = null;
  /** What the API believes its own address to be: put before the path of each image. */
  address = '';
  /** What was asked: `{path, authorization, cookie, at}`, the last in milliseconds. */
  asked = [];
  /** Requests not answered, nor given up, yet. */
  open = 0;

  static async start() {
    const feed = new Feed();
    feed.server = createServer((request, response) => feed.#answer(request, response));
    feed.server.keepAliveTimeout = 60_000;
    await feed.up();
    return feed;
  }

  get url() { return `http://127.0.0.1:${this.port}`; }

  async up() {
    this.server.listen(this.port ?? 0, '127.0.0.1');
    await once(this.server, 'listening');
    this.port = this.server.address().port;
  }

  async down() {
    const closed = once(this.server, 'close');
    this.server.close();
    this.server.closeAllConnections();
    await closed;
  }

  /** Adds the newest image. */
  add(fault = null, type = 'image/png', bytes = GOOD[this.images.length % GOOD.length]) {
    const id = `image-${this.images.length}`;
    this.images.unshift({ id, fault, type, bytes });
    return id;
  }

  /** How often paths that begin so were asked for. */
  count(path) {
    return this.asked.filter((one) => one.path.startsWith(path)).length;
  }

  #item({ id, type, fault }) {
    const item = { id, url: `${this.address}/v1/images/${id}/content`, media_type: type, model: 'gpt-image-1', size: '1024x1024' };
    return { ...item, ...FAULTS[this.everyImage ?? fault]?.item?.() };
  }

  async #answer(request, response) {
    this.open += 1;
    response.once('close', () => { this.open -= 1; });
    const { pathname, searchParams } = new URL(request.url, this.url);
    const { authorization, cookie } = request.headers;
    this.asked.push({ path: request.url, authorization, cookie, at: performance.now() });
    if (pathname === '/tollgate-frames.js') {
      return send(response, 200, 'text/javascript', await readFile(new URL('../tollgate-frames.js', import.meta.url)));
    }
    if (!pathname.startsWith('/v1/')) return send(response, 200, 'text/html', page());
    if (authorization !== `Bearer ${KEY}`) return send(response, 401, 'application/problem+json', '{}');
    if (pathname === '/v1/images') {
      if (this.list) return this.list(response);
      const data = this.images.slice(0, Number(searchParams.get('limit'))).map((image) => this.#item(image));
      return send(response, 200, 'application/json', JSON.stringify({ data, next_cursor: null }));
    }
    const image = this.images.find(({ id }) => pathname === `/v1/images/${id}/content`);
    if (!image) return send(response, 404, 'application/problem+json', '{}');
    const fault = FAULTS[this.everyImage ?? image.fault];
    if (fault?.content) return fault.content(response, image.bytes);
    return send(response, 200, image.type, image.bytes);
  }
}

/** Where the component stands in the page. */
export const BOX = { x: 20, y: 10, width: 120, height: 90 };

const page = () => `<!doctype html><title>Frames</title>
<style>
  body { margin: 0; background: ${PAGE}; }
  tollgate-frames { position: absolute; left: ${BOX.x}px; top: ${BOX.y}px; width: ${BOX.width}px; height: ${BOX.height}px; aspect-ratio: auto }
  tollgate-frames > div { height: 100%; background: ${PLACEHOLDER} }
</style>
<tollgate-frames interval="100" fade="60" refresh="400" timeout="2000" limit="100"><div></div></tollgate-frames>
<script type="module" src="/tollgate-frames.js"></script>`;
