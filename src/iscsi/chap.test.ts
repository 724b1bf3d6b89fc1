import assert from 'node:assert/strict';
import { test } from 'node:test';
import { chapMatches, chapResponse } from './chap.ts';
import { CHAP_ALGORITHM } from './constants.ts';

// hash(01 || "secretsecret" || 000102…0f), computed with openssl dgst.
const CHALLENGE = Uint8Array.from({ length: 16 }, (_, index) => index);
const VECTORS: [keyof typeof CHAP_ALGORITHM, string][] = [
  ['md5', '226dc576c33f04ff9c3a200ffe35f442'],
  ['sha1', 'ae35ac1694de2cf7e68e790fbface9a28501fed7'],
  ['sha256', '024aef34e176668b34ec2bf7f5525e3bf7f0e94d7cec77cb07d08c3d5a8e23ca'],
  ['sha3_256', 'e2bd0aba5f885a39aa4fbebccc63203c2f728f034cbaf009b44c2f0c5544f172'],
];

for (const [name, expected] of VECTORS) {
  test(`CHAP response by ${name}`, () => {
    const response = chapResponse(CHAP_ALGORITHM[name], 1, 'secretsecret', CHALLENGE);
    assert.equal(response.toString('hex'), expected);
    assert.equal(chapMatches(response, Buffer.from(expected, 'hex')), true);
    response[0]! ^= 1;
    assert.equal(chapMatches(response, Buffer.from(expected, 'hex')), false);
    assert.equal(chapMatches(response, response.subarray(1)), false);
  });
}
