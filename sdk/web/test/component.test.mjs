// How the component behaves as a part of a page: what it asks for, with which key, and what it leaves behind.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { after, afterEach, before, beforeEach, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { eventually, launch, Viewer } from './browser.mjs';
import { Feed, KEY } from './feed.mjs';

let browser;
let feed;
let viewer;
let other;

before(async () => { browser = await launch(); });
after(() => browser?.close());
beforeEach(async () => {
  feed = await Feed.start();
  viewer = await Viewer.open(browser, feed.url);
});
afterEach(async () => {
  await viewer?.close();
  await feed?.down();
  other?.close().closeAllConnections();
});

/** Nothing is under way in the page, and nothing of it at the server. */
async function assertNothingLeft() {
  await eventually('requests are given up', () => feed.open === 0);
  const { mostUrls, ...left } = await viewer.left();
  assert.deepEqual(left, { timers: 0, urls: 0, fetches: 0 }, `at most ${mostUrls} addresses at once`);
  assert.equal(await viewer.listeners('visibilitychange'), 0);
  const asked = feed.asked.length;
  await sleep(700);
  assert.equal(feed.asked.length, asked, 'it still asks');
}

const remove = () => viewer.element.evaluate((element) => { window.removed = element; element.remove(); });

test('removed between two frames, it leaves nothing behind', async () => {
  for (let count = 0; count < 4; count += 1) feed.add();
  await viewer.begin({ interval: 60_000 });
  await viewer.reach(1);
  await eventually('it waits with the next frame', async () => feed.count('/v1/images/') >= 2 && feed.open === 0);
  await remove();
  await assertNothingLeft();
});

test('removed while a picture hangs, it leaves nothing behind', async () => {
  feed.add('drips');
  await viewer.begin({ timeout: 60_000 });
  await eventually('the picture is under way', () => feed.open === 1 && feed.count('/v1/images/') === 1);
  await remove();
  await assertNothingLeft();
});

test('removed while the feed hangs, it leaves nothing behind', async () => {
  feed.list = () => {};
  await viewer.begin({ timeout: 60_000 });
  await eventually('the feed is under way', () => feed.open === 1);
  await remove();
  await assertNothingLeft();
});

test('removed while it fades, it keeps one frame, and goes on where it is put back', async () => {
  for (let count = 0; count < 4; count += 1) feed.add();
  await viewer.begin({ fade: 10_000 });
  await viewer.reach(1);
  await viewer.element.evaluate((element) => element.shadowRoot.getAnimations().forEach((fade) => fade.finish()));
  await viewer.more(1);
  const pictures = () => viewer.page.evaluate(() => window.removed.shadowRoot.querySelectorAll('img').length);
  await remove();
  await eventually('one is kept', async () => await pictures() === 1);
  await assertNothingLeft();
  await viewer.page.evaluate(() => { window.removed.fade = 0; document.body.append(window.removed); });
  await viewer.more(3);
});

test('moved within the page, it goes on', async () => {
  for (let count = 0; count < 4; count += 1) feed.add();
  await viewer.begin();
  await viewer.reach(2);
  const watch = await viewer.watch();
  await viewer.more(1);
  for (let count = 0; count < 5; count += 1) {
    await viewer.element.evaluate((element) => document.body.append(element));
    await viewer.more(2);
  }
  await watch.end();
  assert.deepEqual(watch.blank, []);
});

test('while nobody can see it, it stands still', async () => {
  for (let count = 0; count < 4; count += 1) feed.add();
  const stands = async (what) => {
    // What is under way comes to its end.
    await sleep(300);
    await eventually('requests are answered', () => feed.open === 0);
    const before = [await viewer.frames(), feed.asked.length];
    await sleep(800);
    assert.deepEqual([await viewer.frames(), feed.asked.length], before, what);
  };
  await viewer.begin({ fade: 300 });
  await viewer.reach(2);
  await viewer.hide(true);
  await stands('hidden');
  assert.deepEqual((await viewer.left()).timers, 0);
  await viewer.hide(false);
  await viewer.more(2);
  await viewer.begin({ paused: true });
  await stands('paused');
  await viewer.begin({ paused: false });
  await viewer.more(2);
});

test('the key goes to the API alone, and stands nowhere in the page', async () => {
  const elsewhere = [];
  other = createServer((request, response) => {
    elsewhere.push(request.headers);
    // One that would take the key gladly.
    response.writeHead(204, { 'access-control-allow-origin': '*', 'access-control-allow-headers': 'authorization' }).end();
  }).listen(0, '127.0.0.1');
  await once(other, 'listening');
  const origin = `http://127.0.0.1:${other.address().port}`;
  const items = [`${origin}/a.png`, `//127.0.0.1:${other.address().port}/b.png`].map((url, index) => ({ id: `${index}`, url }));
  feed.list = (response) => response.writeHead(200).end(JSON.stringify({ data: items }));
  await viewer.page.context().addCookies([{ name: 'session', value: 'secret', url: feed.url }]);
  await viewer.begin();
  await eventually('the other host was asked', () => elsewhere.length >= 2);
  assert.ok(elsewhere.every(({ authorization }) => authorization === undefined));
  const asked = feed.asked.filter(({ path }) => path.startsWith('/v1/'));
  assert.ok(asked.length > 0 && asked.every(({ cookie }) => cookie === undefined));
  assert.ok(!(await viewer.page.content()).includes(KEY));
  assert.ok(!(await viewer.element.evaluate((element) => element.outerHTML + element.shadowRoot.innerHTML)).includes(KEY));
});

test('a redirect of the API is not followed with the key', async () => {
  feed.list = (response) => response.writeHead(302, { location: '/elsewhere' }).end();
  await viewer.begin();
  await eventually('an error', async () => (await viewer.told('feederror'))[0]?.reason === 'unreachable');
  assert.equal(feed.count('/elsewhere'), 0);
});

test('without a key it asks nothing; a fetcher takes the place of the key', async () => {
  feed.address = 'https://tollgate.example.com';
  feed.add();
  feed.add();
  await sleep(300);
  assert.equal(feed.count('/v1/'), 0);
  await viewer.element.evaluate((element, key) => {
    window.fetched = [];
    element.src = '/proxy/tollgate/';
    element.fetcher = (url, { signal }) => {
      window.fetched.push(url);
      return fetch(url.replace('/proxy/tollgate', ''), { signal, headers: { authorization: `Bearer ${key}` } });
    };
  }, KEY);
  await viewer.more(3);
  const [list, image] = await viewer.page.evaluate(() => window.fetched);
  assert.equal(list, `${feed.url}/proxy/tollgate/v1/images?limit=100`);
  assert.match(image, new RegExp(`^${feed.url}/proxy/tollgate/v1/images/image-\\d/content$`));
});

test('a fetcher that throws, never answers, or heeds no signal, is survived', async () => {
  feed.add();
  feed.add();
  await viewer.element.evaluate((element, key) => {
    const turns = [() => { throw new Error('no'); }, () => new Promise(() => {}), () => Promise.resolve(null)];
    element.timeout = 100;
    element.fetcher = (url) => (turns.shift() ?? (() => fetch(url, { headers: { authorization: `Bearer ${key}` } })))();
  }, KEY);
  await viewer.more(2);
  assert.deepEqual((await viewer.told('feederror')).map(({ reason }) => reason), ['unreachable', 'timeout', 'unreachable']);
  assert.deepEqual(viewer.problems, []);
});

test('a server that asks to be left alone is left alone', async () => {
  feed.list = (response) => response.writeHead(429, { 'retry-after': '2' }).end();
  await viewer.begin();
  await eventually('an error', async () => (await viewer.told('feederror')).length === 1);
  const [{ reason, retryIn }] = await viewer.told('feederror');
  assert.equal(reason, 'http-429');
  assert.ok(retryIn >= 1_900 && retryIn <= 2_000, `${retryIn}`);
  await eventually('it asks again', () => feed.count('/v1/images?') === 2);
  const [first, second] = feed.asked.filter(({ path }) => path.startsWith('/v1/images?'));
  assert.ok(second.at - first.at >= 2_000, `after ${second.at - first.at} ms`);
});

test('the newest come first, newer ones before those that were shown, and one alone is loaded once', async () => {
  const first = feed.add();
  await viewer.begin();
  await viewer.reach(1);
  await sleep(600);
  assert.deepEqual([await viewer.frames(), feed.count('/v1/images/')], [1, 1]);
  const [second, third] = [feed.add(), feed.add()];
  await viewer.more(3);
  const shown = (await viewer.told('frame')).map(({ id }) => id);
  assert.deepEqual(shown.slice(0, 4), [first, third, second, first]);
});

test('a picture has a text, and the whole a role', async () => {
  feed.add();
  feed.add();
  await viewer.begin();
  await viewer.reach(2);
  await viewer.page.getByRole('img', { name: 'Generated image (gpt-image-1)' }).waitFor();
  await viewer.begin({ alt: 'What we drew today', paused: true });
  await viewer.page.getByRole('img', { name: 'What we drew today' }).waitFor();
  assert.equal(await viewer.page.getByRole('img').count(), 1);
  const { nodes } = await viewer.cdp.send('Accessibility.getFullAXTree');
  const group = nodes.find((node) => node.role?.value === 'group');
  const said = Object.fromEntries(group.properties.map(({ name, value }) => [name, value.value]));
  assert.equal(said.roledescription, 'slideshow');
});

test('numbers that make no sense are not used', async () => {
  const numbers = await viewer.page.evaluate(() => {
    const element = document.createElement('tollgate-frames');
    for (const [name, value] of [['interval', 'x'], ['fade', '-5'], ['limit', '1e9'], ['timeout', '']]) {
      element.setAttribute(name, value);
    }
    const { interval, fade, limit, timeout, refresh } = element;
    return { interval, fade, limit, timeout, refresh };
  });
  assert.deepEqual(numbers, { interval: 5_000, fade: 0, limit: 100, timeout: 15_000, refresh: 15_000 });
});

test('properties that were set before the module was there are heeded', async () => {
  feed.add();
  const early = await viewer.page.context().newPage();
  await early.route('**/tollgate-frames.js', (route) => route.fulfill({ contentType: 'text/javascript', body: '' }));
  await early.goto(feed.url);
  await early.locator('tollgate-frames').evaluate((element, key) => { Object.assign(element, { key, limit: 7 }); }, KEY);
  await early.unroute('**/tollgate-frames.js');
  await early.evaluate(() => import('/tollgate-frames.js?late').then(() => true));
  await eventually('the feed was read', () => feed.count('/v1/images?limit=7') > 0);
});

test('the module can be imported where there is no browser', async () => {
  const module = await import('../tollgate-frames.js');
  assert.equal(typeof module.TollgateFrames, 'function');
});
