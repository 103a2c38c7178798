// @ts-check
/**
 * `<tollgate-frames>`: cross-fades an account's newest images, for ever, and never paints a blank frame.
 *
 * What is shown stays until its successor is known to be good: fetched whole, decoded, and of a size. The successor is
 * then faded in *over* it, at full opacity underneath, so there is no moment at which the page shows through. Whatever
 * is not good is dropped here, on the read path, and the feed is read again; a feed that is bad as a whole, or away,
 * leaves the last good frame where it is. Before the first one, that is the placeholder.
 *
 * One loop (`#run`) does everything in sequence, so no two frames are ever loaded at once, and two at most are
 * held: the one shown, and the one that comes next or has just been. An `AbortSignal` ends the loop and all that it
 * has started.
 *
 * @module
 */

/**
 * @typedef {object} Item An image, as `GET /v1/images` lists it; of what else is listed, nothing is needed.
 * @property {string} id
 * @property {string} url Absolute, or a path of the API.
 * @property {string} [model]
 *
 * @typedef {(url: string, init: RequestInit) => Promise<Response>} Fetcher
 *
 * @typedef {object} Frame A picture that is ready to be shown.
 * @property {Item} item
 * @property {HTMLImageElement} image
 */

/** What an attribute may be: the value without it, the least and the most. Times are milliseconds. */
const NUMBERS = {
  interval: { preset: 5_000, least: 50, most: 86_400_000 },
  fade: { preset: 800, least: 0, most: 60_000 },
  limit: { preset: 20, least: 1, most: 100 },
  refresh: { preset: 15_000, least: 100, most: 86_400_000 },
  timeout: { preset: 15_000, least: 100, most: 300_000 },
};

/** The first wait after a failure, which doubles up to the longest, in milliseconds. */
const RETRY = { first: 500, longest: 30_000 };

/** No image, and no page of a feed, has more bytes: what runs on and on is cut off. */
const MOST_BYTES = 64 * 1024 * 1024;

/** A timer that is set for longer goes off at once. */
const LONGEST_TIMER = 2 ** 31 - 1;

/** A picture is looked at on a grid of so many cells a side, to tell one that shows nothing. */
const GRID = 32;

/** Why a frame, or a reading of the feed, came to nothing. */
class Refused extends Error {
  /**
   * @param {string} reason A word for programs, such as `http-404`.
   * @param {number} [wait] How long the server asks to be left alone, in milliseconds.
   */
  constructor(reason, wait = 0) {
    super(reason);
    this.reason = reason;
    this.wait = wait;
  }
}

/**
 * Waits, but no longer than `signal` lets it. It may be early, if the time is weeks.
 * @param {number} ms
 * @param {AbortSignal} signal
 */
function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const end = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener('abort', end);
      resolve(undefined);
    }, Math.min(ms, LONGEST_TIMER));
    signal.addEventListener('abort', end, { once: true });
    if (signal.aborted) end();
  });
}

/**
 * Gives `work` so much time. Afterwards, however it went, whatever it has left under way is aborted.
 * @template T
 * @param {number} ms
 * @param {AbortSignal} outer
 * @param {(signal: AbortSignal) => Promise<T>} work
 * @returns {Promise<T>}
 */
async function within(ms, outer, work) {
  const inner = new AbortController();
  const stop = () => inner.abort(outer.reason);
  const aborted = new Promise((_, reject) => {
    inner.signal.addEventListener('abort', () => reject(inner.signal.reason), { once: true });
  });
  const timer = setTimeout(() => inner.abort(new Refused('timeout')), ms);
  outer.addEventListener('abort', stop, { once: true });
  try {
    if (outer.aborted) throw outer.reason;
    // A fetcher of the page's may not heed the signal, so the signal is waited for as well.
    return await Promise.race([work(inner.signal), aborted]);
  } finally {
    clearTimeout(timer);
    outer.removeEventListener('abort', stop);
    inner.abort(new Refused('over'));
  }
}

/** Where frames come from: the API, or whatever the page has put before it. */
class Source {
  /** @param {string} src @param {string | null} key @param {Fetcher | null} fetcher */
  constructor(src, key, fetcher) {
    this.base = new URL(src || '/', document.baseURI);
    this.key = key;
    this.fetcher = fetcher;
  }

  /**
   * The address of a path of the API; an API may live below a path of its own.
   * @param {string} url
   */
  locate(url) {
    const path = url.startsWith('/') && !url.startsWith('//');
    const address = path ? this.base.pathname.replace(/\/+$/, '') + url : url;
    const located = URL.canParse(address, this.base.href) && new URL(address, this.base);
    if (!located || !/^https?:$/.test(located.protocol)) throw new Refused('bad-url');
    return located;
  }

  /**
   * The address of a picture. The API may have called itself by another address than it is reached by from here.
   * @param {Item} item
   */
  picture({ id, url }) {
    const path = `/v1/images/${encodeURIComponent(id)}/content`;
    return this.locate(url.endsWith(path) ? path : url);
  }

  /**
   * @param {URL} url
   * @param {AbortSignal} signal
   * @param {boolean} afresh Whether the browser's cache is to be left out: it may hold what was no good.
   * @returns {Promise<Blob>}
   */
  async get(url, signal, afresh) {
    /** @type {RequestInit} */
    const init = { signal, cache: afresh ? 'reload' : 'default' };
    if (!this.fetcher && this.key && url.origin === this.base.origin) {
      // The key is for the API alone: not for another host, not for one it redirects to, and not along with cookies.
      Object.assign(init, {
        headers: { authorization: `Bearer ${this.key}` }, credentials: 'omit', redirect: 'error',
      });
    }
    try {
      const response = await (this.fetcher ?? fetch)(url.href, init);
      if (!response.ok) {
        const seconds = Number(response.headers.get('retry-after'));
        throw new Refused(`http-${response.status}`, seconds > 0 ? seconds * 1_000 : 0);
      }
      return await bytes(response);
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      throw error instanceof Refused ? error : new Refused('unreachable');
    }
  }
}

/** @param {Response} response @returns {Promise<Blob>} */
async function bytes(response) {
  const parts = [];
  let length = 0;
  const reader = response.body?.getReader();
  for (let part = await reader?.read(); part && !part.done; part = await reader?.read()) {
    length += part.value.byteLength;
    if (length > MOST_BYTES) throw new Refused('too-large');
    parts.push(part.value);
  }
  if (length === 0) throw new Refused('empty');
  return new Blob(parts, { type: response.headers.get('content-type') ?? '' });
}

/**
 * A picture of these bytes, ready to be painted at once; or the reason why there is none.
 * @param {Blob} blob
 * @param {AbortSignal} signal
 */
async function decode(blob, signal) {
  if (!/^image\//i.test(blob.type)) throw new Refused('not-an-image');
  // An <img> takes the first half of a picture for a picture, and so does its `decode()`. This does not.
  const bitmap = await createImageBitmap(blob, { resizeWidth: GRID, resizeHeight: GRID, resizeQuality: 'low' })
    .catch(() => { throw new Refused('undecodable'); });
  const blank = showsNothing(bitmap);
  bitmap.close();
  if (blank) throw new Refused('blank');
  signal.throwIfAborted();

  const image = new Image();
  // Never painted before it is decoded, even if the browser has thrown the decoded picture away in the meantime.
  image.decoding = 'sync';
  const url = URL.createObjectURL(blob);
  const drop = () => image.removeAttribute('src');
  signal.addEventListener('abort', drop, { once: true });
  try {
    image.src = url;
    await image.decode();
  } catch {
    throw new Refused('undecodable');
  } finally {
    signal.removeEventListener('abort', drop);
    URL.revokeObjectURL(url);
  }
  if (image.naturalWidth === 0 || image.naturalHeight === 0) throw new Refused('no-size');
  return image;
}

/**
 * Whether a picture is black or transparent all over: what some models answer with instead of refusing.
 * @param {ImageBitmap} bitmap
 */
function showsNothing(bitmap) {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = GRID;
  const context = canvas.getContext('2d', { willReadFrequently: true });
  if (!context) return false;
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, GRID, GRID);
  for (let at = 0; at < data.length; at += 4) {
    if (data[at + 3] > 0 && Math.max(data[at], data[at + 1], data[at + 2]) > 1) return false;
  }
  return true;
}

/**
 * The items there are, and which is next: the one that was not up for longest; among those that never were, the
 * newest. What failed waits for its turn to be tried again, longer each time.
 */
class Feed {
  /** @type {Map<string, {item: Item, turn: number, failures: number, again: number}>} */
  #entries = new Map();
  #turns = 0;
  /** Readings that failed in a row, and readings that have not brought one good frame. */
  #failures = 0;
  #fruitless = 0;
  #readAt = 0;
  #quietUntil = 0;

  /** Whether it should be read (again). */
  get due() {
    return performance.now() >= Math.max(this.#readAt, this.#quietUntil);
  }

  /** How long there is nothing to do, in milliseconds. */
  get idle() {
    const again = [...this.#entries.values()].map((entry) => entry.again);
    return Math.max(Math.min(this.#readAt, ...again), this.#quietUntil) - performance.now();
  }

  /** @returns {Item | undefined} */
  next() {
    const now = performance.now();
    if (now < this.#quietUntil) return undefined;
    const ready = [...this.#entries.values()].filter((entry) => entry.again <= now);
    return ready.sort((one, other) => one.turn - other.turn)[0]?.item;
  }

  /** @param {Item} item */
  failedBefore(item) {
    return (this.#entries.get(item.id)?.failures ?? 0) > 0;
  }

  /** @param {Item[]} items Newest first. @param {number} refresh */
  read(items, refresh) {
    const before = this.#entries;
    // After an outage, what failed in it need not wait any longer.
    const forgiven = this.#failures > 0;
    this.#failures = 0;
    this.#fruitless += 1;
    this.#readAt = performance.now() + refresh;
    this.#entries = new Map();
    for (const item of items) {
      const known = before.get(item.id) ?? { turn: 0, failures: 0, again: 0 };
      this.#entries.set(item.id, { ...known, item, again: forgiven ? 0 : known.again });
    }
  }

  /** @param {Refused} why @returns {number} When it will be read again: in so many milliseconds. */
  unread(why) {
    this.#failures += 1;
    this.#quiet(why);
    this.#readAt = performance.now() + Math.max(backoff(this.#failures), why.wait);
    return this.#readAt - performance.now();
  }

  /** @param {Item} item */
  worked(item) {
    this.#fruitless = 0;
    const entry = this.#entries.get(item.id);
    if (entry) Object.assign(entry, { turn: ++this.#turns, failures: 0 });
  }

  /** @param {Item} item @param {Refused} why */
  dropped(item, why) {
    const entry = this.#entries.get(item.id);
    if (!entry) return;
    entry.turn = ++this.#turns;
    entry.failures += 1;
    entry.again = performance.now() + backoff(entry.failures);
    this.#quiet(why);
    // It may have been replaced.
    this.#readAt = Math.min(this.#readAt, performance.now() + backoff(Math.max(this.#fruitless, 1)));
  }

  /** @param {Refused} why */
  #quiet(why) {
    this.#quietUntil = Math.max(this.#quietUntil, performance.now() + why.wait);
  }
}

/**
 * Drawn anew each time, so that many viewers do not come back all at once.
 * @param {number} failures
 */
function backoff(failures) {
  return Math.min(RETRY.first * 2 ** (failures - 1), RETRY.longest) * (0.5 + Math.random() / 2);
}

const STYLE = `
  :host { display: block; position: relative; overflow: hidden; isolation: isolate; aspect-ratio: 1; }
  :host([hidden]) { display: none; }
  [part] { position: absolute; inset: 0; width: 100%; height: 100%; }
  [part="placeholder"] { background: linear-gradient(135deg, #cbd5e1, #94a3b8); }
  [part="frame"] { object-fit: cover; }
  .covered slot { visibility: hidden; }
`;

/** So that the module can be imported where there is no browser, by a page rendered on a server. */
const Base = globalThis.HTMLElement ?? /** @type {typeof HTMLElement} */ (class {});

/**
 * @fires frame - `detail` is the item that is now shown
 * @fires framedropped - `detail` is `{id, reason}`
 * @fires feederror - `detail` is `{reason, retryIn}`
 */
export class TollgateFrames extends Base {
  static observedAttributes = ['src', 'limit', 'paused', 'alt'];

  /** Ends what is under way; `null` while nothing is. @type {AbortController | null} */
  #running = null;
  #starting = false;
  /** @type {string | null} */
  #key = null;
  /** @type {Fetcher | null} */
  #fetcher = null;
  /** @type {Frame | null} */
  #shown = null;
  /** @type {Animation | null} */
  #fading = null;
  #internals = this.attachInternals();
  #root = this.attachShadow({ mode: 'open' });
  /** Stays underneath, without its text: a picture may be transparent in places. */
  #placeholder = document.createElement('div');

  constructor() {
    super();
    const style = new CSSStyleSheet();
    style.replaceSync(STYLE);
    this.#root.adoptedStyleSheets = [style];
    this.#placeholder.part.add('placeholder');
    this.#placeholder.append(document.createElement('slot'));
    this.#root.append(this.#placeholder);
    this.#internals.role = 'group';
    this.#internals.ariaRoleDescription = 'slideshow';
    // Not read out at each change.
    this.#internals.ariaLive = 'off';
  }

  connectedCallback() {
    // A property that was set before this class was known hides the accessor of the same name.
    for (const name of ['key', 'fetcher', 'src', 'paused', 'alt', ...Object.keys(NUMBERS)]) {
      if (!Object.hasOwn(this, name)) continue;
      const value = Reflect.get(this, name);
      Reflect.deleteProperty(this, name);
      Reflect.set(this, name, value);
    }
    this.#restart();
  }

  disconnectedCallback() {
    this.#stop();
  }

  /** @param {string} name @param {string | null} old @param {string | null} value */
  attributeChangedCallback(name, old, value) {
    if (old === value) return;
    if (name === 'alt') {
      if (this.#shown) this.#shown.image.alt = this.#describe(this.#shown.item);
    } else if (name === 'src' || name === 'limit' || name === 'paused') {
      this.#restart();
    }
  }

  /** An API key of the account, with the scope `jobs:read`. Never an attribute: markup is copied, logged and cached. */
  get key() { return this.#key; }
  set key(key) {
    this.#key = key;
    this.#restart();
  }

  /** Asked instead of the API, by a page that keeps the key on its server. */
  get fetcher() { return this.#fetcher; }
  set fetcher(fetcher) {
    this.#fetcher = fetcher;
    this.#restart();
  }

  /** Where the API is; without it, where the page comes from. */
  get src() { return this.getAttribute('src') ?? ''; }
  set src(src) { this.setAttribute('src', src); }

  /** What assistive technology says of a picture. */
  get alt() { return this.getAttribute('alt') ?? ''; }
  set alt(alt) { this.setAttribute('alt', alt); }

  /** Stands still, as it does while nobody can see it. */
  get paused() { return this.hasAttribute('paused'); }
  set paused(paused) { this.toggleAttribute('paused', paused); }

  /** From one frame to the next, in milliseconds. */
  get interval() { return this.#number('interval'); }
  set interval(ms) { this.setAttribute('interval', String(ms)); }

  /** How long a cross-fade takes, in milliseconds. */
  get fade() { return this.#number('fade'); }
  set fade(ms) { this.setAttribute('fade', String(ms)); }

  /** How many of the newest images are shown in turn. */
  get limit() { return Math.trunc(this.#number('limit')); }
  set limit(count) { this.setAttribute('limit', String(count)); }

  /** How old the list of images may become, in milliseconds. */
  get refresh() { return this.#number('refresh'); }
  set refresh(ms) { this.setAttribute('refresh', String(ms)); }

  /** How long a frame, or the list, may take, in milliseconds. */
  get timeout() { return this.#number('timeout'); }
  set timeout(ms) { this.setAttribute('timeout', String(ms)); }

  /** @param {keyof typeof NUMBERS} name */
  #number(name) {
    const { preset, least, most } = NUMBERS[name];
    const text = this.getAttribute(name)?.trim();
    const value = text ? Number(text) : preset;
    return Number.isFinite(value) ? Math.min(Math.max(value, least), most) : preset;
  }

  #stop() {
    this.#running?.abort(new Refused('over'));
    this.#running = null;
    this.#fading?.finish();
  }

  /** Several properties set in a row make one start. */
  #restart() {
    this.#stop();
    if (this.#starting) return;
    this.#starting = true;
    queueMicrotask(() => {
      this.#starting = false;
      if (!this.isConnected || !(this.#key || this.#fetcher)) return;
      const running = new AbortController();
      this.#running = running;
      this.#run(running.signal).catch((error) => {
        if (!running.signal.aborted) throw error;
      });
    });
  }

  /** @param {AbortSignal} signal */
  async #run(signal) {
    const feed = new Feed();
    const source = new Source(this.src, this.#key, this.#fetcher);
    for (let due = 0; ;) {
      await this.#awake(signal);
      if (feed.due) await this.#read(feed, source, signal);
      const item = feed.next();
      if (!item) {
        await pause(feed.idle, signal);
        continue;
      }
      if (item.id !== this.#shown?.item.id) {
        const image = await this.#load(item, feed, source, signal);
        if (!image) continue;
        await pause(due - performance.now(), signal);
        await this.#awake(signal);
        due = performance.now() + this.interval;
        await this.#show({ item, image }, signal);
      }
      feed.worked(item);
      // The only one there is: it stays, without being loaded again.
      if (feed.next()?.id === item.id) await pause(this.interval, signal);
    }
  }

  /** Waits until there is somebody to see it. @param {AbortSignal} signal */
  async #awake(signal) {
    while (document.hidden || this.paused) {
      const changed = new AbortController();
      const wake = () => changed.abort(new Refused('over'));
      document.addEventListener('visibilitychange', wake, { signal: changed.signal });
      signal.addEventListener('abort', wake, { signal: changed.signal });
      if (!signal.aborted) {
        await new Promise((resolve) => changed.signal.addEventListener('abort', resolve, { once: true }));
      }
      signal.throwIfAborted();
    }
  }

  /** @param {Feed} feed @param {Source} source @param {AbortSignal} signal */
  async #read(feed, source, signal) {
    try {
      const url = source.locate('/v1/images');
      url.searchParams.set('limit', String(this.limit));
      const blob = await within(this.timeout, signal, (inner) => source.get(url, inner, false));
      const page = await blob.text().then(JSON.parse).catch(() => null);
      if (!Array.isArray(page?.data)) throw new Refused('malformed');
      const items = page.data.filter((/** @type {any} */ item) => {
        const named = typeof item?.id === 'string' && item.id !== '';
        if (!named) this.#tell('framedropped', { id: null, reason: 'no-id' });
        return named;
      });
      feed.read(items.slice(0, this.limit), this.refresh);
    } catch (error) {
      const why = refusal(error, signal);
      this.#tell('feederror', { reason: why.reason, retryIn: Math.round(feed.unread(why)) });
    }
  }

  /**
   * @param {Item} item @param {Feed} feed @param {Source} source @param {AbortSignal} signal
   * @returns {Promise<HTMLImageElement | undefined>} Nothing, if it was dropped.
   */
  async #load(item, feed, source, signal) {
    try {
      if (typeof item.url !== 'string' || item.url.trim() === '') throw new Refused('no-url');
      return await within(this.timeout, signal, async (inner) => {
        const blob = await source.get(source.picture(item), inner, feed.failedBefore(item));
        return await decode(blob, inner);
      });
    } catch (error) {
      const why = refusal(error, signal);
      feed.dropped(item, why);
      this.#tell('framedropped', { id: item.id, reason: why.reason });
      return undefined;
    }
  }

  /** @param {Frame} frame @param {AbortSignal} signal */
  async #show(frame, signal) {
    const { image, item } = frame;
    image.part.add('frame');
    image.alt = this.#describe(item);
    const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
    // As long as nobody sees it, nothing is painted, and an animation may never end.
    const hurry = () => this.#fading?.finish();
    document.addEventListener('visibilitychange', hurry);
    try {
      this.#root.append(image);
      const before = this.#shown;
      this.#shown = frame;
      before?.image.setAttribute('alt', '');
      this.#tell('frame', item);
      if (!still && this.fade > 0) {
        this.#fading = image.animate([{ opacity: 0 }, { opacity: 1 }], { duration: this.fade, easing: 'ease-in-out' });
        await this.#fading.finished.catch(() => {});
      }
      before?.image.remove();
      this.#placeholder.classList.add('covered');
    } finally {
      this.#fading = null;
      document.removeEventListener('visibilitychange', hurry);
    }
    signal.throwIfAborted();
  }

  /** @param {Item} item */
  #describe(item) {
    return this.alt || `Generated image${typeof item.model === 'string' ? ` (${item.model})` : ''}`;
  }

  /** @param {string} type @param {unknown} detail */
  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/**
 * What to make of an error; the end of everything is not for the one who asks.
 * @param {unknown} error
 * @param {AbortSignal} signal
 */
function refusal(error, signal) {
  signal.throwIfAborted();
  if (error instanceof Refused) return error;
  reportError(error);
  return new Refused('failed');
}

if (globalThis.customElements && !customElements.get('tollgate-frames')) {
  customElements.define('tollgate-frames', TollgateFrames);
}
