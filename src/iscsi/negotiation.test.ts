import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isGodwitError } from '../base/errors.ts';
import { Negotiation } from './negotiation.ts';

const TARGET = {
  HeaderDigest: 'None,CRC32C',
  DataDigest: 'None,CRC32C',
  MaxConnections: '1',
  InitialR2T: 'No',
  ImmediateData: 'Yes',
  MaxBurstLength: '1048576',
  FirstBurstLength: '65536',
  DefaultTime2Wait: '0',
  DefaultTime2Retain: '0',
  MaxOutstandingR2T: '1',
  DataPDUInOrder: 'Yes',
  DataSequenceInOrder: 'Yes',
  ErrorRecoveryLevel: '0',
};

// key, what the initiator offers, what the target answers (null: nothing)
const TABLE: [string, string, string | null][] = [
  ['HeaderDigest', 'CRC32C,None', 'CRC32C'],
  ['HeaderDigest', 'None', 'None'],
  ['DataDigest', 'MD5,CRC32C', 'CRC32C'],
  ['DataDigest', 'MD5', 'Reject'],
  ['MaxConnections', '8', '1'],
  ['MaxConnections', '0', 'Reject'],
  ['InitialR2T', 'Yes', 'Yes'],
  ['InitialR2T', 'No', 'No'],
  ['InitialR2T', 'yes', 'Reject'],
  ['ImmediateData', 'Yes', 'Yes'],
  ['ImmediateData', 'No', 'No'],
  ['MaxRecvDataSegmentLength', '131072', null],
  ['MaxRecvDataSegmentLength', '511', 'Reject'],
  ['MaxBurstLength', '16776192', '1048576'],
  ['MaxBurstLength', '0x1000', '4096'],
  ['MaxBurstLength', '16777216', 'Reject'],
  ['FirstBurstLength', '262144', '65536'],
  ['DefaultTime2Wait', '2', '2'],
  ['DefaultTime2Retain', '20', '0'],
  ['MaxOutstandingR2T', '16', '1'],
  ['DataPDUInOrder', 'No', 'Yes'],
  ['DataSequenceInOrder', 'Yes', 'Yes'],
  ['ErrorRecoveryLevel', '2', '0'],
  ['ErrorRecoveryLevel', '3', 'Reject'],
  ['IFMarker', 'Yes', 'No'],
  ['OFMarker', 'No', 'No'],
  ['TaskReporting', 'FastAbort,RFC3720', 'RFC3720'],
  ['TargetAlias', 'x', null],
  ['X-com.example.thing', 'x', 'NotUnderstood'],
];

for (const [key, offered, answer] of TABLE) {
  test(`the target answers ${key}=${offered} with ${answer ?? 'nothing'}`, () => {
    const negotiation = new Negotiation(TARGET);
    assert.deepEqual(
      negotiation.respond(key, offered, { discovery: false }),
      answer === null ? null : [key, answer],
    );
  });
}

test('what is irrelevant to a discovery session is called so', () => {
  const negotiation = new Negotiation(TARGET);
  assert.deepEqual(negotiation.respond('MaxBurstLength', '4096', { discovery: true }), [
    'MaxBurstLength',
    'Irrelevant',
  ]);
});

test('defaults hold for what nobody mentions, and the first burst never exceeds a burst', () => {
  assert.deepEqual(new Negotiation(TARGET).parameters(), {
    headerDigest: false,
    dataDigest: false,
    initialR2t: true,
    immediateData: true,
    peerDataSegmentBytes: 8192,
    maxBurstBytes: 262144,
    firstBurstBytes: 65536,
  });
  const small = new Negotiation(TARGET);
  small.respond('MaxBurstLength', '4096', { discovery: false });
  assert.equal(small.parameters().firstBurstBytes, 4096);
});

test('both sides come to the same parameters', () => {
  const offer = { ...TARGET, HeaderDigest: 'CRC32C,None', InitialR2T: 'No', MaxBurstLength: '262144' };
  const initiator = new Negotiation(offer);
  const target = new Negotiation(TARGET);
  for (const [key, value] of Object.entries(offer)) {
    const answer = target.respond(key, value, { discovery: false });
    if (answer !== null) initiator.accept(answer[0], answer[1]);
  }
  assert.deepEqual(initiator.parameters(), target.parameters());
  assert.equal(initiator.parameters().headerDigest, true);
});

test('the initiator refuses answers that do not follow from its offer', () => {
  const wrong: [string, string][] = [
    ['HeaderDigest', 'MD5'],
    ['MaxBurstLength', '2097152'],
    ['MaxBurstLength', 'lots'],
    ['InitialR2T', 'maybe'],
    ['ErrorRecoveryLevel', '1'],
    ['iSCSIProtocolLevel', '1'],
    ['MaxRecvDataSegmentLength', '0'],
  ];
  for (const [key, answer] of wrong) {
    assert.throws(
      () => new Negotiation(TARGET).accept(key, answer),
      (error) => isGodwitError(error, 'ISCSI_PROTOCOL'),
      `${key}=${answer}`,
    );
  }
});
