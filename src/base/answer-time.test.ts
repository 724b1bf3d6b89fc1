import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AnswerTime } from './answer-time.ts';
import { seededRandom } from './random.ts';

const options = { floorMs: 1_000, ceilingMs: 60_000 };

test('without a measurement the floor holds, and it doubles with each question that nobody answers', () => {
  const time = new AnswerTime(options);
  const patience: number[] = [];
  for (let question = 0; question < 8; question++) {
    patience.push(time.patienceMs);
    time.unanswered();
  }
  assert.deepEqual(patience, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
  assert.deepEqual([time.smoothedMs, time.unansweredInRow], [null, 8]);
});

test('the first measurement and the next are those of RFC 6298', () => {
  const time = new AnswerTime(options);
  time.answered(4_000);
  // SRTT = R, RTTVAR = R/2, RTO = SRTT + 4 RTTVAR.
  assert.deepEqual([time.smoothedMs, time.patienceMs], [4_000, 12_000]);
  time.answered(2_000);
  // RTTVAR = 3/4 * 2000 + 1/4 * 2000, SRTT = 7/8 * 4000 + 1/8 * 2000.
  assert.deepEqual([time.smoothedMs, time.patienceMs], [3_750, 3_750 + 4 * 2_000]);
});

test('quick answers end at the floor, an answer ends the growth', () => {
  const time = new AnswerTime(options);
  time.unanswered();
  time.unanswered();
  assert.equal(time.patienceMs, 4_000);
  for (let answer = 0; answer < 50; answer++) time.answered(3);
  assert.deepEqual([time.patienceMs, time.unansweredInRow], [1_000, 0]);
});

test('a peer that is a hundred times as slow from one answer to the next is waited for within three questions, and then at once', () => {
  const random = seededRandom(3);
  const time = new AnswerTime(options);
  for (let answer = 0; answer < 100; answer++) time.answered(20 + random.below(40));
  let asked = 0;
  const slowMs = () => 2_000 + random.below(4_000);
  for (let answer = 0; answer < 100; answer++) {
    const tookMs = slowMs();
    while (time.patienceMs < tookMs) {
      time.unanswered();
      asked++;
    }
    time.answered(tookMs);
  }
  assert.ok(asked <= 3 + 5, `${asked} questions were given up`);
  assert.ok(time.patienceMs < options.ceilingMs && time.patienceMs > 4_000, `${time.patienceMs}`);
});
