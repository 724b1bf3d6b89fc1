import { DEFAULT_DATA_SEGMENT_BYTES } from './constants.ts';
import { protocolError } from './errors.ts';
import { parseNumber, type TextPair } from './text-keys.ts';

/**
 * Operational keys (RFC 7143 section 13) and how each is settled (section 6.2).
 *
 *   list         the responder picks the first of the offered values that it supports
 *   declarative  each side states its own; there is no answer
 *   minimum, maximum   of both numbers
 *   and, or      of both booleans
 */
export type Rule =
  | { kind: 'list'; values: readonly string[] }
  | { kind: 'declarative-number'; low: number; high: number }
  | { kind: 'declarative-text' }
  | { kind: 'minimum' | 'maximum'; low: number; high: number }
  | { kind: 'and' | 'or' };

const BYTES = { low: 512, high: 2 ** 24 - 1 };

/** In the order of RFC 7143 section 13. */
const OPERATIONAL_RULES: Readonly<Record<string, Rule>> = {
  HeaderDigest: { kind: 'list', values: ['None', 'CRC32C'] },
  DataDigest: { kind: 'list', values: ['None', 'CRC32C'] },
  MaxConnections: { kind: 'minimum', low: 1, high: 65535 },
  TargetName: { kind: 'declarative-text' },
  InitiatorName: { kind: 'declarative-text' },
  TargetAlias: { kind: 'declarative-text' },
  InitiatorAlias: { kind: 'declarative-text' },
  TargetAddress: { kind: 'declarative-text' },
  TargetPortalGroupTag: { kind: 'declarative-number', low: 0, high: 65535 },
  InitialR2T: { kind: 'or' },
  ImmediateData: { kind: 'and' },
  MaxRecvDataSegmentLength: { kind: 'declarative-number', ...BYTES },
  MaxBurstLength: { kind: 'minimum', ...BYTES },
  FirstBurstLength: { kind: 'minimum', ...BYTES },
  DefaultTime2Wait: { kind: 'maximum', low: 0, high: 3600 },
  DefaultTime2Retain: { kind: 'minimum', low: 0, high: 3600 },
  MaxOutstandingR2T: { kind: 'minimum', low: 1, high: 65535 },
  DataPDUInOrder: { kind: 'or' },
  DataSequenceInOrder: { kind: 'or' },
  ErrorRecoveryLevel: { kind: 'minimum', low: 0, high: 2 },
  SessionType: { kind: 'declarative-text' },
  // Markers are obsolete (section 13.25): answered, never used.
  OFMarker: { kind: 'and' },
  IFMarker: { kind: 'and' },
  TaskReporting: { kind: 'list', values: ['RFC3720', 'ResponseFence', 'FastAbort'] },
  NodeArchitecture: { kind: 'declarative-text' },
  iSCSIProtocolLevel: { kind: 'minimum', low: 0, high: 31 },
};

/** Keys that a discovery session has no use for (section 13: "irrelevant when SessionType=Discovery"). */
const IRRELEVANT_TO_DISCOVERY = new Set([
  'MaxConnections',
  'InitialR2T',
  'ImmediateData',
  'MaxBurstLength',
  'FirstBurstLength',
  'MaxOutstandingR2T',
  'DataPDUInOrder',
  'DataSequenceInOrder',
]);

/** What a session works by once login is done. Sizes in bytes. */
export type SessionParameters = {
  headerDigest: boolean;
  dataDigest: boolean;
  initialR2t: boolean;
  immediateData: boolean;
  /** Largest data segment that the peer takes. */
  peerDataSegmentBytes: number;
  maxBurstBytes: number;
  firstBurstBytes: number;
};

/** What one side brings to the table, by key. Lists are comma separated in the order of preference. */
export type Proposal = Readonly<Record<string, string>>;

/** Settled values by key, starting from the defaults of RFC 7143 section 13. */
export class Negotiation {
  readonly #settled = new Map<string, string>([
    ['HeaderDigest', 'None'],
    ['DataDigest', 'None'],
    ['InitialR2T', 'Yes'],
    ['ImmediateData', 'Yes'],
    ['MaxBurstLength', '262144'],
    ['FirstBurstLength', '65536'],
    ['MaxOutstandingR2T', '1'],
    ['ErrorRecoveryLevel', '0'],
  ]);
  #peerDataSegmentBytes = DEFAULT_DATA_SEGMENT_BYTES;
  readonly #own: Proposal;

  constructor(own: Proposal) {
    this.#own = own;
  }

  /**
   * The responder's side: what to answer to a key that the peer offered; null where a key gets no answer. A
   * value that cannot be agreed on is answered with `Reject`, an unknown key with `NotUnderstood`.
   */
  respond(key: string, offered: string, options: { discovery: boolean }): TextPair | null {
    const rule = OPERATIONAL_RULES[key];
    if (rule === undefined) return [key, 'NotUnderstood'];
    if (rule.kind === 'declarative-text') return null;
    if (rule.kind === 'declarative-number') {
      return this.declare(key, offered) ? null : [key, 'Reject'];
    }
    if (options.discovery && IRRELEVANT_TO_DISCOVERY.has(key)) return [key, 'Irrelevant'];
    const result = settle(rule, offered, this.#own[key] ?? ownDefault(rule));
    if (result === null) return [key, 'Reject'];
    this.#settled.set(key, result);
    return [key, result];
  }

  /**
   * The originator's side: takes the peer's answer to a key that we offered. An answer that does not follow
   * from the offer is a protocol error.
   */
  accept(key: string, answer: string): void {
    const rule = OPERATIONAL_RULES[key];
    if (rule === undefined || rule.kind === 'declarative-text') return;
    if (rule.kind === 'declarative-number') {
      if (!this.declare(key, answer)) throw protocolError('declared value is out of range', { key, answer });
      return;
    }
    const offered = this.#own[key];
    // The peer may leave a key at its default, whatever we offered.
    if (answer === 'NotUnderstood' || answer === 'Irrelevant' || answer === 'Reject') return;
    if (offered === undefined) throw protocolError('answer to a key that was not offered', { key, answer });
    if (rule.kind === 'list') {
      if (!offered.split(',').includes(answer))
        throw protocolError('answer was not offered', { key, answer });
    } else if (settle(rule, answer, offered) !== normalised(answer)) {
      throw protocolError('answer does not follow from the offer', { key, offered, answer });
    }
    this.#settled.set(key, normalised(answer));
  }

  /** Takes a declaration of the peer. False: the value is out of range. */
  declare(key: string, value: string): boolean {
    const rule = OPERATIONAL_RULES[key];
    if (rule?.kind !== 'declarative-number') return false;
    const number = parseNumber(value, rule.low, rule.high);
    if (number === null) return false;
    if (key === 'MaxRecvDataSegmentLength') this.#peerDataSegmentBytes = number;
    return true;
  }

  parameters(): SessionParameters {
    const maxBurstBytes = Number(this.#settled.get('MaxBurstLength'));
    return {
      headerDigest: this.#settled.get('HeaderDigest') === 'CRC32C',
      dataDigest: this.#settled.get('DataDigest') === 'CRC32C',
      initialR2t: this.#settled.get('InitialR2T') === 'Yes',
      immediateData: this.#settled.get('ImmediateData') === 'Yes',
      peerDataSegmentBytes: this.#peerDataSegmentBytes,
      maxBurstBytes,
      // Section 13.14: FirstBurstLength must not exceed MaxBurstLength.
      firstBurstBytes: Math.min(Number(this.#settled.get('FirstBurstLength')), maxBurstBytes),
    };
  }
}

/** The outcome of an offer, or null where there is none. Pure. */
export function settle(rule: Rule, offered: string, own: string): string | null {
  switch (rule.kind) {
    case 'list': {
      const supported = own.split(',');
      return offered.split(',').find((value) => supported.includes(value)) ?? null;
    }
    case 'and':
    case 'or': {
      if (offered !== 'Yes' && offered !== 'No') return null;
      const offeredYes = offered === 'Yes';
      const ownYes = own === 'Yes';
      return (rule.kind === 'and' ? offeredYes && ownYes : offeredYes || ownYes) ? 'Yes' : 'No';
    }
    case 'minimum':
    case 'maximum': {
      const theirs = parseNumber(offered, rule.low, rule.high);
      if (theirs === null) return null;
      return String(rule.kind === 'minimum' ? Math.min(theirs, Number(own)) : Math.max(theirs, Number(own)));
    }
    case 'declarative-number':
    case 'declarative-text':
      return null;
  }
}

/** What we bring where the owner said nothing: the plainest value. */
function ownDefault(rule: Rule): string {
  switch (rule.kind) {
    case 'list':
      return rule.values[0]!;
    case 'and':
    case 'or':
      return 'No';
    case 'minimum':
    case 'maximum':
      return String(rule.low);
    default:
      return '';
  }
}

function normalised(answer: string): string {
  return /^0[xX]/.test(answer) ? String(Number(answer)) : answer;
}
