import { GodwitError } from '../base/errors.ts';
import type { Random } from '../base/random.ts';
import {
  CHALLENGE_BYTES_MAX,
  CHALLENGE_BYTES_MIN,
  CHAP_ALGORITHMS_DEFAULT,
  type ChapAlgorithmName,
  chapBytes,
  chapMatches,
  chapResponse,
} from './chap.ts';
import { CHAP_ALGORITHM, LOGIN_STATUS, nameOf, STAGE, VERSION } from './constants.ts';
import { protocolError } from './errors.ts';
import { Negotiation, type Proposal, type SessionParameters } from './negotiation.ts';
import type { LoginRequestPdu, LoginResponsePdu } from './pdu.ts';
import {
  formatBinary,
  formatTextKeys,
  parseBinary,
  parseUniqueTextKeys,
  type TextPair,
} from './text-keys.ts';

/**
 * The initiator's side of a login (RFC 7143 sections 6 and 11.12), without I/O: `start` gives the first
 * request, `step` takes a response and gives the next request or the outcome.
 *
 *   without CHAP:  operational → full feature
 *   with CHAP:     names + AuthMethod → CHAP_A → CHAP_N, CHAP_R (+ our challenge) → operational → full feature
 */
export type ChapCredentials = {
  user: string;
  secret: string;
  /** When given, the target must prove that it knows this secret. */
  mutual?: { user: string; secret: string };
  /** In the order of preference; default: all, strongest first. */
  algorithms?: readonly ChapAlgorithmName[];
};

export type InitiatorLoginOptions = {
  initiatorName: string;
  /** null: a discovery session. */
  targetName: string | null;
  chap: ChapCredentials | null;
  isid: Buffer;
  random: Random;
  proposal: Proposal;
  textBytesMax: number;
};

export type LoginSend = {
  request: Omit<LoginRequestPdu, 'cmdSn' | 'expStatSn' | 'initiatorTaskTag'>;
  data: Buffer;
};
export type InitiatorLoginStep =
  | { send: LoginSend }
  | { done: { parameters: SessionParameters; tsih: number } };

export class InitiatorLogin {
  readonly #options: InitiatorLoginOptions;
  readonly #negotiation: Negotiation;
  #state: 'method' | 'algorithm' | 'response' | 'operational' = 'method';
  #challenge: Buffer | null = null;
  #identifier = 0;
  #algorithm = 0;
  #text: Buffer[] = [];
  #textBytes = 0;
  #keysSent = false;

  constructor(options: InitiatorLoginOptions) {
    this.#options = options;
    this.#negotiation = new Negotiation(options.proposal);
  }

  start(): LoginSend {
    const names: TextPair[] = [
      ['InitiatorName', this.#options.initiatorName],
      ['SessionType', this.#options.targetName === null ? 'Discovery' : 'Normal'],
    ];
    if (this.#options.targetName !== null) names.push(['TargetName', this.#options.targetName]);
    if (this.#options.chap === null) {
      this.#state = 'operational';
      this.#keysSent = true;
      return this.#send(STAGE.operational, STAGE.fullFeature, [
        ...names,
        ...Object.entries(this.#options.proposal),
      ]);
    }
    return this.#send(STAGE.security, null, [...names, ['AuthMethod', 'CHAP']]);
  }

  /**
   * Throws `ISCSI_LOGIN_REFUSED`, `ISCSI_LOGIN_PUT_OFF`, `ISCSI_LOGIN_REDIRECTED`,
   * `ISCSI_TARGET_NOT_AUTHENTIC` or `ISCSI_PROTOCOL`.
   */
  step(response: LoginResponsePdu, data: Uint8Array): InitiatorLoginStep {
    if (response.status !== LOGIN_STATUS.success) throw refused(response.status, this.#options.targetName);
    if (response.versionActive !== VERSION) throw protocolError('target chose another protocol version');
    this.#textBytes += data.length;
    if (this.#textBytes > this.#options.textBytesMax) throw protocolError('login text is too long');
    this.#text.push(Buffer.from(data));
    const stage = this.#state === 'operational' ? STAGE.operational : STAGE.security;
    if (response.currentStage !== stage) throw protocolError('target is in another login stage');
    if (response.continues) {
      if (response.transit) throw protocolError('T and C bits together');
      return { send: this.#send(stage, null, []) };
    }
    const keys = parseUniqueTextKeys(Buffer.concat(this.#text));
    this.#text = [];
    this.#textBytes = 0;
    for (const [key, value] of keys) {
      if (key !== 'AuthMethod' && !key.startsWith('CHAP_')) this.#negotiation.accept(key, value);
    }
    if (stage === STAGE.security) return { send: this.#security(response, keys) };
    if (!response.transit) {
      // The target has more to say; an empty request lets it, and text of its own bounds how often.
      if (keys.size === 0) throw protocolError('target does not end the login');
      return { send: this.#send(STAGE.operational, STAGE.fullFeature, []) };
    }
    if (response.nextStage !== STAGE.fullFeature) throw protocolError('target goes to another login stage');
    return { done: { parameters: this.#negotiation.parameters(), tsih: response.tsih } };
  }

  #security(response: LoginResponsePdu, keys: Map<string, string>): LoginSend {
    const chap = this.#options.chap!;
    switch (this.#state) {
      case 'method': {
        const method = keys.get('AuthMethod');
        if (method !== 'CHAP') {
          throw protocolError('target did not choose CHAP', { method: method ?? null });
        }
        this.#state = 'algorithm';
        const algorithms = (chap.algorithms ?? CHAP_ALGORITHMS_DEFAULT).map((name) => CHAP_ALGORITHM[name]);
        return this.#send(STAGE.security, null, [['CHAP_A', algorithms.join(',')]]);
      }
      case 'algorithm': {
        this.#algorithm = Number(keys.get('CHAP_A'));
        const offered: number[] = (chap.algorithms ?? CHAP_ALGORITHMS_DEFAULT).map(
          (name) => CHAP_ALGORITHM[name],
        );
        if (!offered.includes(this.#algorithm))
          throw protocolError('target chose a CHAP algorithm that was not offered');
        const identifier = Number(keys.get('CHAP_I') ?? Number.NaN);
        const challenge = parseBinary(keys.get('CHAP_C') ?? '');
        if (!Number.isInteger(identifier) || identifier < 0 || identifier > 255 || challenge === null) {
          throw protocolError('CHAP_I or CHAP_C is malformed');
        }
        if (challenge.length < CHALLENGE_BYTES_MIN || challenge.length > CHALLENGE_BYTES_MAX) {
          throw protocolError('CHAP_C has a bad length', { lengthBytes: challenge.length });
        }
        const pairs: TextPair[] = [
          ['CHAP_N', chap.user],
          ['CHAP_R', formatBinary(chapResponse(this.#algorithm, identifier, chap.secret, challenge))],
        ];
        if (chap.mutual !== undefined) {
          this.#identifier = this.#options.random.below(256);
          this.#challenge = Buffer.from(this.#options.random.bytes(chapBytes(this.#algorithm)));
          pairs.push(['CHAP_I', String(this.#identifier)], ['CHAP_C', formatBinary(this.#challenge)]);
        }
        this.#state = 'response';
        return this.#send(STAGE.security, STAGE.operational, pairs);
      }
      case 'response': {
        if (chap.mutual !== undefined) this.#verifyTarget(chap.mutual, keys);
        if (!response.transit) throw protocolError('target does not leave the security stage');
        if (response.nextStage !== STAGE.operational)
          throw protocolError('target goes to another login stage');
        this.#state = 'operational';
        const pairs = this.#keysSent ? [] : Object.entries(this.#options.proposal);
        this.#keysSent = true;
        return this.#send(STAGE.operational, STAGE.fullFeature, pairs);
      }
      case 'operational':
        throw protocolError('security keys in the operational stage');
    }
  }

  #verifyTarget(mutual: { user: string; secret: string }, keys: Map<string, string>): void {
    const received = parseBinary(keys.get('CHAP_R') ?? '');
    const expected = chapResponse(this.#algorithm, this.#identifier, mutual.secret, this.#challenge!);
    if (received === null || !chapMatches(expected, received) || keys.get('CHAP_N') !== mutual.user) {
      throw new GodwitError(
        'ISCSI_TARGET_NOT_AUTHENTIC',
        'The iSCSI target did not prove that it is the right one',
        {
          values: { targetName: this.#options.targetName },
          retry: 'never',
          nextAction: 'Check the address and the mutual CHAP secret; somebody else may be answering there.',
        },
      );
    }
  }

  #send(currentStage: number, nextStage: number | null, pairs: Iterable<TextPair>): LoginSend {
    return {
      request: {
        transit: nextStage !== null,
        continues: false,
        currentStage,
        nextStage: nextStage ?? 0,
        versionMax: VERSION,
        versionMin: VERSION,
        isid: this.#options.isid,
        tsih: 0,
        cid: 0,
      },
      data: formatTextKeys(pairs),
    };
  }
}

function refused(status: number, targetName: string | null): GodwitError {
  const values = { status: nameOf(LOGIN_STATUS, status), statusCode: status, targetName };
  if (status >>> 8 === 1) {
    return new GodwitError('ISCSI_LOGIN_REDIRECTED', 'The iSCSI target has moved to another address', {
      values,
      nextAction: 'Redirection is not followed; give the new address of the target.',
    });
  }
  if (status >>> 8 === 3) {
    return new GodwitError('ISCSI_LOGIN_PUT_OFF', `The iSCSI target puts the login off: ${values.status}`, {
      values,
      nextAction: 'The target is there but cannot serve now; the login is tried again.',
    });
  }
  return new GodwitError('ISCSI_LOGIN_REFUSED', `The iSCSI target refused the login: ${values.status}`, {
    values,
    retry: 'never',
    nextAction:
      'Check that the grant (initiator name, CHAP user and secret, generation) is the one of this export.',
  });
}
