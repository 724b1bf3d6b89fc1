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
import { CHAP_ALGORITHM, LOGIN_STATUS, STAGE, VERSION } from './constants.ts';
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
 * The target's side of a login (RFC 7143 sections 6 and 11.12), without I/O: a request goes in, a response
 * comes out.
 *
 *   stage          state       asks for                           next
 *   security       names       InitiatorName, TargetName          method, or done where no secret is asked for
 *   security       method      AuthMethod                         algorithm
 *   security       algorithm   CHAP_A                             response
 *   security       response    CHAP_N CHAP_R [CHAP_I CHAP_C]      done
 *   any            done        operational keys                   full feature phase, when the initiator asks for it
 *
 * A refusal is a response too; after it the connection is to be closed.
 */

/** A credential that opens the door. Several may fit one initiator name in a discovery session. */
export type Credential = {
  /** null: no authentication asked for. */
  chap: { user: string; secret: string } | null;
  /** Our own, for initiators that want to know us (mutual CHAP). */
  mutual: { user: string; secret: string } | null;
};

export type LoginNames = {
  initiatorName: string;
  sessionType: 'Normal' | 'Discovery';
  targetName: string | null;
};

/** Who may come in: the credentials of which one must be shown, or the status to refuse with. */
export type Admission = { credentials: readonly Credential[] } | { refuse: number; reason: string };

export type LoginOutcome = {
  names: LoginNames;
  isid: Buffer;
  tsih: number;
  cid: number;
  parameters: SessionParameters;
  chapUser: string | null;
};

export type LoginStep = {
  response: Omit<LoginResponsePdu, 'statSn' | 'expCmdSn' | 'maxCmdSn'>;
  data: Buffer;
  /**
   * continue: wait for the next request. refused: close after sending. done: the session begins with the
   * response.
   */
  next: 'continue' | 'refused' | 'done';
  /** Why it was refused, for the log. */
  reason: string | null;
  outcome: LoginOutcome | null;
};

export class TargetLogin {
  readonly #admit: (names: LoginNames) => Admission;
  readonly #random: Random;
  readonly #textBytesMax: number;
  readonly #requestsMax: number;
  readonly #algorithms: readonly ChapAlgorithmName[];
  readonly #declaredDataSegmentBytes: number;
  readonly #negotiation: Negotiation;

  #stage: number | null = null;
  #state: 'names' | 'method' | 'algorithm' | 'response' | 'done' = 'names';
  #names: LoginNames | null = null;
  #credentials: readonly Credential[] = [];
  #chapUser: string | null = null;
  #algorithm = 0;
  #identifier = 0;
  #challenge: Buffer = Buffer.alloc(0);
  #requests = 0;
  #text: Buffer[] = [];
  #textBytes = 0;
  #declared = false;
  #first: LoginRequestPdu | null = null;

  constructor(options: {
    admit: (names: LoginNames) => Admission;
    random: Random;
    /** Largest text of one negotiation step, all continuations together. */
    textBytesMax: number;
    /** Requests of the whole login. Default 64. */
    requestsMax?: number;
    algorithms?: readonly ChapAlgorithmName[];
    proposal: Proposal;
    /** Our MaxRecvDataSegmentLength. */
    dataSegmentBytes: number;
  }) {
    this.#admit = options.admit;
    this.#random = options.random;
    this.#textBytesMax = options.textBytesMax;
    this.#requestsMax = options.requestsMax ?? 64;
    this.#algorithms = options.algorithms ?? CHAP_ALGORITHMS_DEFAULT;
    this.#declaredDataSegmentBytes = options.dataSegmentBytes;
    this.#negotiation = new Negotiation(options.proposal);
  }

  get names(): LoginNames | null {
    return this.#names;
  }

  /** One step. Throws `ISCSI_PROTOCOL` where no sensible response is possible. */
  step(request: LoginRequestPdu, data: Uint8Array): LoginStep {
    this.#first ??= request;
    this.#requests += 1;
    if (this.#requests > this.#requestsMax) {
      return this.#refuse(request, LOGIN_STATUS.initiatorError, 'the login has no end');
    }
    if (
      request.cid !== this.#first.cid ||
      request.tsih !== this.#first.tsih ||
      !request.isid.equals(this.#first.isid)
    ) {
      return this.#refuse(request, LOGIN_STATUS.initiatorError, 'ISID, TSIH or CID changed during login');
    }
    if (request.versionMin > VERSION) {
      return this.#refuse(request, LOGIN_STATUS.unsupportedVersion, 'no common protocol version');
    }
    this.#textBytes += data.length;
    if (this.#textBytes > this.#textBytesMax) {
      return this.#refuse(request, LOGIN_STATUS.initiatorError, 'login text is too long');
    }
    if (data.length > 0) this.#text.push(Buffer.from(data));
    if (request.continues) {
      if (request.transit) {
        return this.#refuse(request, LOGIN_STATUS.initiatorError, 'T and C bits together');
      }
      return this.#respond(request, false, []);
    }
    const text = this.#text.length === 1 ? this.#text[0]! : Buffer.concat(this.#text);
    this.#text = [];
    this.#textBytes = 0;

    const stage = request.currentStage;
    if (stage !== STAGE.security && stage !== STAGE.operational) {
      return this.#refuse(request, LOGIN_STATUS.invalidDuringLogin, 'unknown login stage');
    }
    if (this.#stage !== null && stage !== this.#stage) {
      return this.#refuse(request, LOGIN_STATUS.initiatorError, 'login stage does not follow');
    }
    this.#stage = stage;
    if (
      request.transit &&
      (request.nextStage <= stage ||
        (request.nextStage !== STAGE.operational && request.nextStage !== STAGE.fullFeature))
    ) {
      return this.#refuse(request, LOGIN_STATUS.initiatorError, 'bad next stage');
    }

    const keys = parseUniqueTextKeys(text);
    const answers: TextPair[] = [];
    if (this.#state === 'names') {
      const refusal = this.#takeNames(request, keys);
      if (refusal !== null) return refusal;
    }
    if (this.#state !== 'done') {
      if (stage !== STAGE.security) {
        return this.#refuse(request, LOGIN_STATUS.authenticationFailure, 'authentication was skipped');
      }
      const refusal = this.#authenticate(request, keys, answers);
      if (refusal !== null) return refusal;
    } else if (keys.has('AuthMethod')) {
      const methods = keys.get('AuthMethod')!.split(',');
      if (!methods.includes('None')) {
        return this.#refuse(request, LOGIN_STATUS.authenticationFailure, 'no common authentication method');
      }
      answers.push(['AuthMethod', 'None']);
    }
    this.#operational(stage, keys, answers);
    return this.#respond(request, request.transit && this.#state === 'done', answers);
  }

  #takeNames(request: LoginRequestPdu, keys: Map<string, string>): LoginStep | null {
    const initiatorName = keys.get('InitiatorName');
    const sessionType = keys.get('SessionType') ?? 'Normal';
    const targetName = keys.get('TargetName') ?? null;
    if (initiatorName === undefined || initiatorName === '') {
      return this.#refuse(request, LOGIN_STATUS.missingParameter, 'no InitiatorName');
    }
    if (initiatorName.length > 223 || (targetName !== null && targetName.length > 223)) {
      return this.#refuse(request, LOGIN_STATUS.initiatorError, 'iSCSI name is too long');
    }
    if (sessionType !== 'Normal' && sessionType !== 'Discovery') {
      return this.#refuse(request, LOGIN_STATUS.sessionTypeNotSupported, 'unknown SessionType');
    }
    if (sessionType === 'Normal' && targetName === null) {
      return this.#refuse(request, LOGIN_STATUS.missingParameter, 'no TargetName');
    }
    this.#names = { initiatorName, sessionType, targetName };
    const admission = this.#admit(this.#names);
    if ('refuse' in admission) return this.#refuse(request, admission.refuse, admission.reason);
    this.#credentials = admission.credentials;
    this.#state = this.#credentials.some((credential) => credential.chap === null) ? 'done' : 'method';
    return null;
  }

  #authenticate(request: LoginRequestPdu, keys: Map<string, string>, answers: TextPair[]): LoginStep | null {
    const fail = (reason: string) => this.#refuse(request, LOGIN_STATUS.authenticationFailure, reason);
    if (this.#state === 'method') {
      const offered = keys.get('AuthMethod');
      if (offered === undefined) return request.transit ? fail('authentication was skipped') : null;
      if (!offered.split(',').includes('CHAP')) return fail('CHAP was not offered');
      answers.push(['AuthMethod', 'CHAP']);
      this.#state = 'algorithm';
      // Some initiators send CHAP_A along with AuthMethod.
      if (!keys.has('CHAP_A')) return null;
    }
    if (this.#state === 'algorithm') {
      const offered = (keys.get('CHAP_A') ?? '').split(',');
      const own = this.#algorithms.map((name) => CHAP_ALGORITHM[name] as number);
      const chosen = offered.map(Number).find((number) => own.includes(number));
      if (chosen === undefined) return fail('no common CHAP algorithm');
      this.#algorithm = chosen;
      this.#identifier = this.#random.below(256);
      this.#challenge = Buffer.from(this.#random.bytes(chapBytes(chosen)));
      answers.push(
        ['CHAP_A', String(chosen)],
        ['CHAP_I', String(this.#identifier)],
        ['CHAP_C', formatBinary(this.#challenge)],
      );
      this.#state = 'response';
      return null;
    }
    const user = keys.get('CHAP_N');
    const response = parseBinary(keys.get('CHAP_R') ?? '');
    if (user === undefined || response === null) return fail('CHAP_N or CHAP_R is missing');
    const matching = this.#credentials.find(({ chap }) => {
      if (chap === null) return false;
      const expected = chapResponse(this.#algorithm, this.#identifier, chap.secret, this.#challenge);
      // Both comparisons always run, so that time tells nothing about which one failed.
      const right = chapMatches(expected, response);
      return chap.user === user && right;
    });
    // A challenge is good for one answer, right or wrong.
    const used = this.#challenge;
    this.#challenge = Buffer.alloc(0);
    if (matching === undefined) return fail('wrong CHAP user or secret');
    const identifier = keys.get('CHAP_I');
    const challengeText = keys.get('CHAP_C');
    if (identifier !== undefined || challengeText !== undefined) {
      const challenge = parseBinary(challengeText ?? '');
      const number = Number(identifier);
      if (challenge === null || !Number.isInteger(number) || number < 0 || number > 255) {
        return fail('CHAP_I or CHAP_C is malformed');
      }
      if (challenge.length < CHALLENGE_BYTES_MIN || challenge.length > CHALLENGE_BYTES_MAX) {
        return fail('CHAP_C has a bad length');
      }
      // RFC 7143 section 9.2.1: our own challenge sent back would make us compute the answer for the sender.
      if (challenge.equals(used)) return fail('CHAP challenge was reflected');
      if (matching.mutual === null) return fail('mutual CHAP is not set up for this initiator');
      answers.push(
        ['CHAP_N', matching.mutual.user],
        ['CHAP_R', formatBinary(chapResponse(this.#algorithm, number, matching.mutual.secret, challenge))],
      );
    }
    this.#chapUser = user;
    this.#state = 'done';
    return null;
  }

  #operational(stage: number, keys: Map<string, string>, answers: TextPair[]): void {
    const discovery = this.#names?.sessionType === 'Discovery';
    for (const [key, value] of keys) {
      if (key === 'AuthMethod' || key.startsWith('CHAP_')) continue;
      const answer = this.#negotiation.respond(key, value, { discovery });
      if (answer !== null) answers.push(answer);
    }
    if (stage === STAGE.operational && !this.#declared) {
      this.#declared = true;
      answers.push(['MaxRecvDataSegmentLength', String(this.#declaredDataSegmentBytes)]);
    }
    if (!this.#tagSent && this.#names?.sessionType === 'Normal') {
      // RFC 7143 section 13.9: in the first response of a normal session.
      this.#tagSent = true;
      answers.push(['TargetPortalGroupTag', '1']);
    }
  }
  #tagSent = false;

  #respond(request: LoginRequestPdu, transit: boolean, answers: TextPair[]): LoginStep {
    const done = transit && request.nextStage === STAGE.fullFeature;
    if (transit) this.#stage = request.nextStage;
    if (done && this.#names === null) throw protocolError('login ended before it began');
    return {
      response: {
        transit,
        continues: false,
        currentStage: request.currentStage,
        nextStage: transit ? request.nextStage : 0,
        versionMax: VERSION,
        versionActive: VERSION,
        isid: request.isid,
        tsih: request.tsih,
        initiatorTaskTag: request.initiatorTaskTag,
        status: LOGIN_STATUS.success,
      },
      data: formatTextKeys(answers),
      next: done ? 'done' : 'continue',
      reason: null,
      outcome: done
        ? {
            names: this.#names!,
            isid: request.isid,
            tsih: request.tsih,
            cid: request.cid,
            parameters: this.#negotiation.parameters(),
            chapUser: this.#chapUser,
          }
        : null,
    };
  }

  #refuse(request: LoginRequestPdu, status: number, reason: string): LoginStep {
    const { response } = this.#respond(request, false, []);
    return {
      response: { ...response, status },
      data: Buffer.alloc(0),
      next: 'refused',
      reason,
      outcome: null,
    };
  }
}
