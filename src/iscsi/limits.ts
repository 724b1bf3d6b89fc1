import { HANDSHAKES } from '../base/doorkeeper.ts';

/**
 * Upper bounds of a target. Every one has a default; memory and time of a peer's doing are bounded by them.
 */
export type TargetLimits = {
  /** Sessions at once. One more gets the place of one that is idle, or is refused. */
  connectionsMax: number;
  /** Of these one grant, or all discovery, has at most so many. */
  grantSessionsMax: number;
  /**
   * Connections that have not logged in yet. One more waits for the place of the one that has shown the
   * least, of these the one that stands still for longest.
   */
  halfOpenMax: number;
  /** Of these one address has at most so many. */
  halfOpenAddressMax: number;
  /** From accept to the full feature phase. */
  loginTimeoutMs: number;
  /** Requests of one login. */
  loginRequestsMax: number;
  /** Answers of a login that the peer has not taken. Above it, it is not read from. */
  loginOutputBytesMax: number;
  /** Text of one negotiation step (login or SendTargets), all continuations together. */
  textBytesMax: number;
  /** Our MaxRecvDataSegmentLength: the largest data segment that is taken. */
  dataSegmentBytesMax: number;
  /** Offered MaxBurstLength. */
  burstBytesMax: number;
  /** Offered FirstBurstLength: unsolicited data of one write. */
  firstBurstBytesMax: number;
  /** Commands of a session at once: the size of the command window. */
  queueDepth: number;
  /**
   * Immediate commands at once, and as many immediate task management functions; they do not count in the
   * window.
   */
  immediateMax: number;
  /** Largest READ or WRITE; a power of two. */
  transferBytesMax: number;
  /** Answers of a session that are being read or are queued for the socket. Above it, reads wait. */
  outputBytesMax: number;
  /** Write buffers of a session. Above it, R2Ts wait. */
  writeBytesMax: number;
  /** A connection on which nothing came for so long is sent a NOP-In … */
  nopIntervalMs: number;
  /** … and is dropped when nothing came for so long after it. */
  nopTimeoutMs: number;
  /**
   * For so long the refusal of the first failed login from an address is held back; doubles with each further
   * one, up to the maximum.
   */
  loginDelayMs: number;
  loginDelayMsMax: number;
  /** Addresses with failed logins that are remembered. */
  loginAddressesMax: number;
};

export const TARGET_LIMITS: TargetLimits = {
  connectionsMax: 64,
  grantSessionsMax: 48,
  halfOpenMax: HANDSHAKES.placesMax,
  halfOpenAddressMax: HANDSHAKES.placesOfKeyMax,
  loginRequestsMax: 64,
  loginOutputBytesMax: 64 * 1024,
  loginTimeoutMs: 15_000,
  textBytesMax: 16 * 1024,
  dataSegmentBytesMax: 256 * 1024,
  burstBytesMax: 1024 * 1024,
  firstBurstBytesMax: 64 * 1024,
  queueDepth: 128,
  immediateMax: 16,
  transferBytesMax: 4 * 1024 * 1024,
  outputBytesMax: 8 * 1024 * 1024,
  writeBytesMax: 16 * 1024 * 1024,
  nopIntervalMs: 15_000,
  nopTimeoutMs: 15_000,
  loginDelayMs: 100,
  loginDelayMsMax: 5_000,
  loginAddressesMax: 1024,
};
