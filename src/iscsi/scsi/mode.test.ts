import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { MODE_DEFAULTS, MODE_PAGE, type ModeSettings, modeSelect, modeSense } from './mode.ts';

const DEVICE = { readOnly: false, blocks: 2048, blockBytes: 512 };
const SELECT = { pageFormat: true, save: false };

function sense(bytes: 6 | 10, page: number, settings: ModeSettings = { ...MODE_DEFAULTS }): Buffer {
  const request = { bytes, noBlockDescriptor: false, longLba: bytes === 10, control: 0, page, subpage: 0 };
  const answer = modeSense(request, DEVICE, settings);
  assert.ok(typeof answer !== 'string');
  return answer;
}
/** What MODE SENSE gave, as MODE SELECT wants it: the lengths and the write protection are not for it. */
function asList(bytes: 6 | 10, answer: Buffer): Buffer {
  const list = Buffer.from(answer);
  list.fill(0, 0, bytes === 6 ? 1 : 2);
  return list;
}

for (const bytes of [6, 10] as const) {
  test(`MODE SELECT(${bytes}) takes what MODE SENSE(${bytes}) gave, and the two bits that can change`, () => {
    const list = asList(bytes, sense(bytes, MODE_PAGE.all));
    assert.deepEqual(modeSelect({ bytes, ...SELECT }, list, DEVICE, MODE_DEFAULTS), MODE_DEFAULTS);
    const control = asList(bytes, sense(bytes, MODE_PAGE.control));
    const at = bytes === 6 ? 12 : 24;
    control[at + 2] = 0x04;
    control[at + 4] = 0x08;
    const changed = { descriptorSense: true, softwareWriteProtect: true };
    assert.deepEqual(modeSelect({ bytes, ...SELECT }, control, DEVICE, MODE_DEFAULTS), changed);
    const now = sense(bytes, MODE_PAGE.control, changed);
    assert.deepEqual([now[at + 2], now[at + 4]], [0x04, 0x08]);
    assert.equal(now[bytes === 6 ? 2 : 3]! & 0x80, 0x80);
  });
}

test('what cannot change is refused, and cut lists are', () => {
  const list = asList(6, sense(6, MODE_PAGE.caching));
  const request = { bytes: 6 as const, ...SELECT };
  const wce = Buffer.from(list);
  wce[14] = 0;
  assert.equal(modeSelect(request, wce, DEVICE, MODE_DEFAULTS), 'invalidFieldInParameters');
  const capacity = Buffer.from(list);
  capacity[7] = 9;
  assert.equal(modeSelect(request, capacity, DEVICE, MODE_DEFAULTS), 'invalidFieldInParameters');
  assert.equal(modeSelect(request, list.subarray(0, 20), DEVICE, MODE_DEFAULTS), 'parameterListLength');
  assert.equal(modeSelect({ ...request, save: true }, list, DEVICE, MODE_DEFAULTS), 'invalidFieldInCdb');
  assert.equal(
    modeSelect({ ...request, pageFormat: false }, list, DEVICE, MODE_DEFAULTS),
    'invalidFieldInCdb',
  );
});

test('any parameter list ends in settings or a refusal', () => {
  const template = asList(10, sense(10, MODE_PAGE.all));
  const anything = fc.uint8Array({ maxLength: 300 });
  const nearly = fc
    .array(fc.tuple(fc.nat(template.length - 1), fc.nat(255)), { maxLength: 3 })
    .map((changes) => {
      const list = Uint8Array.from(template);
      for (const [at, value] of changes) list[at] = value;
      return list;
    });
  fc.assert(
    fc.property(fc.oneof(anything, nearly), fc.constantFrom(6 as const, 10 as const), (list, bytes) => {
      const next = modeSelect({ bytes, ...SELECT }, Buffer.from(list), DEVICE, MODE_DEFAULTS);
      if (typeof next !== 'string') assert.deepEqual(Object.keys(next), Object.keys(MODE_DEFAULTS));
    }),
    { numRuns: 2000 },
  );
});
