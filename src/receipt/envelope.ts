import { createHash, createPrivateKey, createPublicKey, type KeyObject, sign, verify } from 'node:crypto';
import { type Static, Type } from 'typebox';
import { Value } from 'typebox/value';
import { GodwitError } from '../base/errors.ts';
import { malformed, parseBody, type ReceiptBody, type ReceiptWorker } from './receipt.ts';

/**
 * A receipt as it is stored and sent: a DSSE envelope (Dead Simple Signing Envelope, protocol version 1.0,
 * https://github.com/secure-systems-lab/dsse) in JSON. What is signed are the bytes of the payload as they
 * are, so nothing hangs on how JSON is written:
 *
 *   PAE = "DSSEv1" SP length(type) SP type SP length(payload) SP payload     (lengths in decimal, of bytes)
 *
 * One Ed25519 signature (RFC 8032) by the source and one by the target; `keyid` is the fingerprint of the
 * key.
 */
const PAYLOAD_TYPE = 'application/vnd.godwit.receipt+json';

/** Longest receipt that is read. */
const RECEIPT_BYTES_MAX = 64 * 1024;

const closed = { additionalProperties: false } as const;
const ReceiptSignature = Type.Object(
  { keyid: Type.String({ maxLength: 64 }), sig: Type.String({ maxLength: 128 }) },
  closed,
);
export type ReceiptSignature = Static<typeof ReceiptSignature>;

export const Receipt = Type.Object(
  {
    payloadType: Type.Literal(PAYLOAD_TYPE),
    /** Base64 of the JSON text of a `ReceiptBody`. */
    payload: Type.String({ minLength: 1, maxLength: RECEIPT_BYTES_MAX }),
    /** By the source, then by the target. Only one of them: not a receipt yet. */
    signatures: Type.Array(ReceiptSignature, { maxItems: 2 }),
  },
  closed,
);
export type Receipt = Static<typeof Receipt>;

/** A worker's own key. */
export class WorkerKey {
  readonly publicKey: string;
  readonly fingerprint: string;
  readonly #privateKey: KeyObject;

  /** `pem`: PKCS #8, Ed25519. Throws `RECEIPT_BAD_KEY`. */
  constructor(pem: string | Buffer) {
    try {
      this.#privateKey = createPrivateKey(pem);
    } catch (error) {
      throw badKey('it cannot be read', error);
    }
    if (this.#privateKey.asymmetricKeyType !== 'ed25519') throw badKey('it is not an Ed25519 key');
    const spki = createPublicKey(this.#privateKey).export({ type: 'spki', format: 'der' });
    this.publicKey = spki.toString('base64');
    this.fingerprint = fingerprintOf(spki);
  }

  sign(payload: Uint8Array): ReceiptSignature {
    return {
      keyid: this.fingerprint,
      sig: sign(null, preAuthentication(payload), this.#privateKey).toString('base64'),
    };
  }
}

/** A receipt with the source's signature; the target's is still missing. */
export function draftReceipt(body: ReceiptBody, key: WorkerKey): Receipt {
  const payload = Buffer.from(JSON.stringify(body), 'utf8');
  return { payloadType: PAYLOAD_TYPE, payload: payload.toString('base64'), signatures: [key.sign(payload)] };
}

/** The target's signature beside the source's. */
export function countersign(draft: Receipt, key: WorkerKey): Receipt {
  const [first] = draft.signatures;
  return { ...draft, signatures: [...(first ? [first] : []), key.sign(payloadOf(draft))] };
}

export type VerifyOptions = {
  /** `draft`: signed by the source alone. Default: by both. */
  stage?: 'draft' | 'complete';
  /** Fingerprints of the workers' keys, when they are known: both keys must be among them. */
  fingerprints?: readonly string[];
};

/**
 * The body of a receipt that holds: shape, sums and signatures. Without `fingerprints` it proves that nobody
 * changed it since the two keys that it names signed it, and not whose keys they are. Errors:
 * `RECEIPT_MALFORMED`, `RECEIPT_FIGURES`, `RECEIPT_BAD_SIGNATURE`, `RECEIPT_UNKNOWN_KEY`.
 */
export function verifyReceipt(value: unknown, options: VerifyOptions = {}): ReceiptBody {
  if (!Value.Check(Receipt, value)) throw malformed('it is not an envelope of this kind');
  const payload = payloadOf(value);
  const body = parseBody(payload);
  const signers: [ReceiptWorker, string][] = [[body.source, 'source']];
  if (options.stage !== 'draft') signers.push([body.target, 'target']);
  if (value.signatures.length !== signers.length) {
    throw badSignature(`it has ${value.signatures.length} signatures instead of ${signers.length}`);
  }
  if (body.source.keyFingerprint === body.target.keyFingerprint)
    throw badSignature('both workers have one key');
  for (const [index, [signer, role]] of signers.entries()) {
    const spki = decodeBase64(signer.publicKey, `the public key of the ${role}`);
    if (fingerprintOf(spki) !== signer.keyFingerprint)
      throw badSignature(`the fingerprint of the ${role} is not that of its key`);
    const signature = value.signatures[index]!;
    if (signature.keyid !== signer.keyFingerprint)
      throw badSignature(`the ${role}'s signature names another key`);
    if (!isSigned(payload, spki, decodeBase64(signature.sig, 'a signature')))
      throw badSignature(`the signature of the ${role} (${signer.worker}) does not fit`);
    if (options.fingerprints && !options.fingerprints.includes(signer.keyFingerprint)) {
      throw new GodwitError(
        'RECEIPT_UNKNOWN_KEY',
        `the key of the ${role} (${signer.worker}) is none that was given`,
        {
          values: { worker: signer.worker, fingerprint: signer.keyFingerprint },
          nextAction:
            'Compare the fingerprint with what that worker prints at its start (godwit worker, log line "worker is up").',
        },
      );
    }
  }
  return body;
}

/** Text of a file. Errors as `verifyReceipt`. */
export function parseReceipt(text: string): unknown {
  if (text.length > RECEIPT_BYTES_MAX * 2) throw malformed('it is too long');
  try {
    return JSON.parse(text);
  } catch (error) {
    throw malformed('it is not JSON', error);
  }
}

function payloadOf(receipt: Receipt): Buffer {
  return decodeBase64(receipt.payload, 'the payload');
}

/** Only the one canonical encoding (RFC 4648 section 3.5), so that a receipt has one text for one meaning. */
function decodeBase64(text: string, what: string): Buffer {
  const bytes = Buffer.from(text, 'base64');
  if (bytes.toString('base64') !== text) throw malformed(`${what} is not base64`);
  return bytes;
}

function isSigned(payload: Buffer, spki: Buffer, signature: Buffer): boolean {
  try {
    const key = createPublicKey({ key: spki, format: 'der', type: 'spki' });
    return key.asymmetricKeyType === 'ed25519' && verify(null, preAuthentication(payload), key, signature);
  } catch {
    return false;
  }
}

function preAuthentication(payload: Uint8Array): Buffer {
  const head = `DSSEv1 ${PAYLOAD_TYPE.length} ${PAYLOAD_TYPE} ${payload.length} `;
  return Buffer.concat([Buffer.from(head, 'latin1'), payload]);
}

function fingerprintOf(spki: Uint8Array): string {
  return createHash('sha256').update(spki).digest('hex');
}

function badSignature(why: string): GodwitError {
  return new GodwitError('RECEIPT_BAD_SIGNATURE', `this receipt was not signed like this: ${why}`, {
    nextAction:
      'It was changed after it was signed, or made up. Ask both workers for it: godwit receipt MOVE.',
  });
}

function badKey(why: string, cause?: unknown): GodwitError {
  return new GodwitError('RECEIPT_BAD_KEY', `the worker key cannot be used: ${why}`, {
    nextAction:
      'Put the file back from a backup, or remove it: the worker makes another key at its next start.',
    cause,
  });
}
