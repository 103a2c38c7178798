// Writes fixtures.json: payloads signed by Stripe's official library, headers with faults in them, and what that library
// says of each. Run it where the library is:
//   npm install stripe@23.1.0 && node generate.mjs > fixtures.json
import Stripe from 'stripe';

const stripe = new Stripe('sk_test_unused');
const secret = 'whsec_test_Zm9yIHRlc3RzIG9ubHk';
const old = 'whsec_test_b2xkIG9uZSwgcm9sbGVk';
const timestamp = 1767225600; // 2026-01-01T00:00:00Z

const event = (id, object) =>
  JSON.stringify({ id, object: 'event', type: 'charge.refunded', created: timestamp, data: { object } }, null, 2);
const payloads = {
  plain: event('evt_plain', { id: 'ch_1', amount_refunded: 500 }),
  unicode: event('evt_unicode', { id: 'ch_2', description: 'Zoë – 札幌 🧾 \u2028 "quoted" \\ tab\t' }),
  compact: JSON.stringify(JSON.parse(event('evt_compact', { id: 'ch_3' }))),
  // Not what JSON.stringify would write: the bytes count, not what they mean.
  spaced: '{ "id" :  "evt_spaced",\r\n\t"amount": 1.50e2, "text": "\\u00e9" }\n',
  big: event('evt_big', { id: 'ch_4', lines: Array.from({ length: 400 }, (_, n) => ({ n, note: 'é'.repeat(40) })) }),
};

const sign = (payload, with_secret = secret, at = timestamp) =>
  stripe.webhooks.generateTestHeaderString({ payload, secret: with_secret, timestamp: at });
const v1 = (header) => header.split('v1=')[1];

const cases = [];
// `stricter`: the official library accepts it, and we do not; each with its reason.
const add = (name, payload, header, { now = timestamp, secrets = secret, stricter } = {}) => {
  const official = secrets.split(',').some((one) => {
    try {
      stripe.webhooks.signature.verifyHeader(payload, header, one, 300, undefined, now * 1000);
      return true;
    } catch {
      return false;
    }
  });
  cases.push({ name, payload, header, now, secrets, official, ...(stricter && { stricter }) });
};

for (const [name, payload] of Object.entries(payloads)) add(name, payload, sign(payload));
const body = payloads.plain;
const good = sign(body);
const hex = v1(good);
const other = v1(sign(body, old));

add('two v1, the first right', body, `${good},v1=${other}`);
add('two v1, the second right', body, `t=${timestamp},v1=${other},v1=${hex}`);
add('v0 beside it', body, `${good},v0=${other}`);
add('v1 before t', body, `v1=${hex},t=${timestamp}`);
add('unknown items', body, `x=1,${good},nonsense,=`);
add('signed with the old secret while it is rolled', body, sign(body, old), { secrets: `${secret},${old}` });
add('signed with the new secret while it is rolled', body, good, { secrets: `${old},${secret}` });
add('just within the tolerance', body, good, { now: timestamp + 300 });

add('the old secret alone', body, good, { secrets: old });
add('only v0', body, `t=${timestamp},v0=${hex}`);
add('right signature as v0, wrong as v1', body, `t=${timestamp},v1=${other},v0=${hex}`);
add('another body', payloads.compact, good);
add('a line feed more', `${body}\n`, good);
add('another time', body, `t=${timestamp + 1},v1=${hex}`);
add('empty header', body, '');
add('no t', body, `v1=${hex}`);
add('no v1', body, `t=${timestamp}`);
add('empty v1', body, `t=${timestamp},v1=`);
add('truncated', body, good.slice(0, -1));
add('half', body, `t=${timestamp},v1=${hex.slice(0, 32)}`);
add('longer', body, `${good}0`);
add('doubled', body, `${good}${hex}`);
add('upper-case hex', body, `t=${timestamp},v1=${hex.toUpperCase()}`);
add('no hex', body, `t=${timestamp},v1=${'z'.repeat(64)}`);
add('not even ASCII', body, `t=${timestamp},v1=${'é'.repeat(32)}`);
add('a space before v1', body, `t=${timestamp}, v1=${hex}`);
add('a space after it', body, `${good} `);
add('empty t', body, `t=,v1=${hex}`);
add('t is no number', body, `t=soon,v1=${hex}`);
add('semicolons', body, good.replace(',', ';'));
add('just beyond the tolerance', body, good, { now: timestamp + 301 });
add('days old', body, good, { now: timestamp + 3 * 86400 });

add('from the future', body, good, { now: timestamp - 301, stricter: 'no clock is so wrong' });
add('two t, the last right', body, `t=1,${good}`, { stricter: 'which one was meant?' });
add('t with more behind it', body, good.replace(',', 'x,'), { stricter: 'parseInt stops where it likes' });
add('a signed t', body, good.replace('t=', 't=+'), { stricter: 'it is not what was signed' });
add('v1 with more behind it', body, `${good}=more`, { stricter: 'it is cut at the second =' });

process.stdout.write(`${JSON.stringify(cases, null, 1)}\n`);
