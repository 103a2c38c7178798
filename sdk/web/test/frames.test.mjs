// What is painted, by its pixels, while the feed goes wrong in every way.

import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { eventually, launch, Viewer } from './browser.mjs';
import { FAULTS, Feed, random, shuffled } from './feed.mjs';
import { GOOD } from './pictures.mjs';

const SEED = Number(process.env.FRAMES_SEED ?? 4);
const KINDS = Object.keys(FAULTS);

let browser;
let feed;
let viewer;

before(async () => { browser = await launch(); });
after(() => browser?.close());
afterEach(async () => {
  await viewer?.close();
  if (feed?.server.listening) await feed.down();
});

async function open(options) {
  feed = await Feed.start();
  viewer = await Viewer.open(browser, feed.url, options);
}

/** Encodes a picture anew, in one of the other formats that models answer in. */
async function encoded(bytes, type) {
  const url = await viewer.page.evaluate(async ([base64, format]) => {
    const image = new Image();
    image.src = `data:image/png;base64,${base64}`;
    await image.decode();
    const canvas = Object.assign(document.createElement('canvas'), { width: image.width, height: image.height });
    canvas.getContext('2d').drawImage(image, 0, 0);
    return canvas.toDataURL(format, 0.95);
  }, [bytes.toString('base64'), type]);
  assert.ok(url.startsWith(`data:${type}`));
  return Buffer.from(url.split(',')[1], 'base64');
}

/** 100 images: a fifth of them broken, in every way, in random order; the others of every format. */
async function mixedFeed() {
  const jpeg = ['image/jpeg', await encoded(GOOD[0], 'image/jpeg')];
  const webp = ['image/webp', await encoded(GOOD[1], 'image/webp')];
  const broken = Array.from({ length: 20 }, (_, index) => KINDS[index % KINDS.length]);
  for (const [index, fault] of shuffled([...broken, ...Array(80).fill(null)], random(SEED)).entries()) {
    feed.add(fault, ...[jpeg, webp, [], []][index % 4]);
  }
}

/** Lets the viewer show its first frame, so that from now on there is one to be kept. */
async function live(properties) {
  await viewer.begin(properties);
  await viewer.reach(3);
  const watch = await viewer.watch();
  await viewer.more(1);
  return watch;
}

function assertNeverBlank(watch) {
  assert.equal(watch.blank.length, 0, `${watch.blank.length} of ${watch.painted} painted frames are blank, the first: `
    + JSON.stringify(watch.blank[0]));
}

test('no painted frame is blank while a fifth of the feed is broken in every way', async (context) => {
  await open();
  await mixedFeed();
  const watch = await viewer.watch();
  await viewer.begin();
  const memory = [];
  for (const frames of [10, 30, 55, 80]) {
    await viewer.reach(frames, 60_000);
    memory.push(await viewer.memory());
  }
  const broken = feed.images.filter((image) => image.fault);
  const dropped = async () => new Map((await viewer.told('framedropped')).map(({ id, reason }) => [id, reason]));
  await watch.end();

  const { painted, seconds } = watch;
  context.diagnostic(`${await viewer.frames()} frames, ${painted} painted frames looked at in ${seconds.toFixed(1)} s, `
    + `${(await viewer.told('framedropped')).length} dropped, seed ${SEED}`);
  assertNeverBlank(watch);
  assert.ok(painted / seconds >= 10, `only ${painted} painted frames in ${seconds} s`);
  await eventually('each broken image was met', async () => (await dropped()).size >= broken.length);

  // Each fault was told by its name, and was not shown; and the feed was read again.
  const reasons = await dropped();
  for (const { id, fault } of broken) assert.equal(reasons.get(id), FAULTS[fault].reason, fault);
  assert.deepEqual((await viewer.told('frame')).filter(({ id }) => reasons.has(id)), []);
  assert.ok(feed.count('/v1/images?') >= 5, `the feed was read ${feed.count('/v1/images?')} times`);
  assert.deepEqual(await viewer.told('feederror'), []);
  assert.deepEqual(viewer.problems, []);

  // And nothing piles up.
  context.diagnostic(`after ever more frames: ${JSON.stringify(memory)}`);
  // Two that it holds, and what the browser has not let go of yet.
  assert.ok(memory.every(({ pictures }) => pictures <= 4), JSON.stringify(memory));
  assert.ok(memory.at(-1).bytes - memory[0].bytes < 500_000, JSON.stringify(memory));
  assert.ok((await viewer.left()).mostUrls <= 1);
});

test('what watches the frames sees the blank ones of a viewer that shows what it is given', async (context) => {
  await open();
  await mixedFeed();
  const watch = await viewer.watch();
  await viewer.element.evaluate(async (element, key) => {
    const headers = { authorization: `Bearer ${key}` };
    const { data } = await (await fetch('/v1/images?limit=30', { headers })).json();
    const image = element.shadowRoot.appendChild(document.createElement('img'));
    image.part.add('frame');
    for (const { url } of data) {
      // As an application would: whatever there is becomes the picture.
      const get = url ? fetch(url, { headers, signal: AbortSignal.timeout(200) }) : Promise.reject(url);
      const blob = await get.then((response) => response.blob()).catch(() => new Blob());
      image.src = URL.createObjectURL(blob);
      await new Promise((resolve) => { setTimeout(resolve, 80); });
    }
  }, 'sk_live_test_key');
  await watch.end();
  context.diagnostic(`${watch.blank.length} of ${watch.painted} painted frames are blank`);
  assert.ok(watch.blank.length > 0);
});

test('the last good frame stays while the whole feed is bad', async () => {
  await open();
  for (let count = 0; count < 8; count += 1) feed.add();
  const watch = await live();
  for (const fault of ['short', 'missing', 'emptyUrl']) {
    feed.everyImage = fault;
    const before = (await viewer.told('framedropped')).length;
    await eventually(`drops of ${fault}`, async () => (await viewer.told('framedropped')).length >= before + 8);
    feed.everyImage = null;
    await viewer.more(2);
  }
  await watch.end();
  assertNeverBlank(watch);
});

test('the last good frame stays while the feed cannot be read', async () => {
  await open();
  for (let count = 0; count < 8; count += 1) feed.add();
  const watch = await live();
  const answers = {
    'http-500': (response) => response.writeHead(500).end(),
    malformed: (response) => response.writeHead(200, { 'content-type': 'application/json' }).end('{"data": [{"id": "x'),
    timeout: () => {},
  };
  for (const [reason, list] of Object.entries(answers)) {
    feed.list = list;
    await eventually(reason, async () => (await viewer.told('feederror')).some((error) => error.reason === reason));
    feed.list = null;
    await viewer.more(2);
  }
  await feed.down();
  await eventually('unreachable', async () =>
    (await viewer.told('feederror')).some((error) => error.reason === 'unreachable'));
  await sleep(1_500);
  const seen = await viewer.look();
  assert.equal(seen.frame, seen.all, JSON.stringify(seen));
  await feed.up();
  await viewer.more(3);
  await watch.end();
  assertNeverBlank(watch);
});

test('an empty list, and items that are none, leave what is there', async () => {
  await open();
  feed.add();
  feed.add();
  const watch = await live();
  const items = ['[]', '[null, 7, {}, {"id": ""}, {"url": "/x"}]'];
  for (const data of items) {
    const before = feed.count('/v1/images?');
    feed.list = (response) => response.writeHead(200).end(`{"data": ${data}}`);
    await eventually('the list was read', () => feed.count('/v1/images?') >= before + 2);
  }
  feed.list = null;
  await viewer.more(2);
  await watch.end();
  assertNeverBlank(watch);
  assert.deepEqual(new Set((await viewer.told('framedropped')).map(({ reason }) => reason)), new Set(['no-id']));
});

test('the placeholder stays as long as there is nothing good, and few requests are made', async () => {
  await open();
  for (const kind of KINDS) feed.add(kind);
  const watch = await viewer.watch();
  const began = performance.now();
  await viewer.begin({ refresh: 60_000 });
  await eventually('each was dropped', async () =>
    new Set((await viewer.told('framedropped')).map(({ id }) => id)).size === KINDS.length);
  const seen = await viewer.look();
  assert.equal(seen.placeholder, seen.all, JSON.stringify(seen));

  // What hangs would slow it down.
  feed.images = feed.images.filter(({ fault }) => FAULTS[fault].reason !== 'timeout');
  await sleep(3_000);
  // From a quarter of a second, each wait is twice the last at least; the list is not read more often than that either.
  const turns = Math.floor(Math.log2((performance.now() - began) / 250 + 1)) + 1;
  for (const path of [...feed.images.map(({ id }) => `/v1/images/${id}/`), '/v1/images?']) {
    assert.ok(feed.count(path) <= turns, `${path}: ${feed.count(path)} times, not ${turns}`);
  }
  assert.equal(await viewer.frames(), 0);

  feed.add();
  await viewer.more(1);
  await eventually('the first frame', async () => (await viewer.look()).frame === seen.all);
  await watch.end();
  assertNeverBlank(watch);
});

test('without motion, a frame takes the place of the last at once, and is not blank either', async () => {
  await open({ reducedMotion: 'reduce' });
  await mixedFeed();
  const watch = await viewer.watch();
  await viewer.begin({ fade: 5_000 });
  await viewer.reach(30);
  assert.equal(await viewer.page.evaluate(() => document.getAnimations({ subtree: true }).length), 0);
  await watch.end();
  assertNeverBlank(watch);
});
