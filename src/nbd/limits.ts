import { HANDSHAKES } from '../base/doorkeeper.ts';

/**
 * Upper bounds of a server. Every one has a default; time and work of a peer's doing are bounded by them, its
 * memory by `ClientLimits`.
 */
export type ServerLimits = {
  /** Clients at once that have asked for something. */
  connectionsMax: number;
  /** Of one TCP address (IPv6: one /64). Clients of a unix socket are one and may have all. */
  connectionsPerAddressMax: number;
  /** Connections at once that are in their handshake, or through with it and have asked for nothing. */
  handshakesMax: number;
  /** Of one TCP address, as above. */
  handshakesPerAddressMax: number;
  /** From accept to the transmission phase, TLS included. */
  handshakeTimeoutMs: number;
  /** Data of one option. More is skipped unread and refused. */
  optionBytesMax: number;
  /** Options of one handshake. */
  optionsMax: number;
  /** Answers of a handshake that the client has not taken. Above it, it is not read from. */
  handshakeOutputBytesMax: number;
  /** Largest read, write, cache and write-zeroes; announced as the maximum block size. */
  requestBytesMax: number;
  /**
   * A longer payload ends the connection; one above `requestBytesMax` is skipped and answered with an error.
   */
  payloadBytesMax: number;
  /** Requests of one connection at once. */
  requestsMax: number;
  /** Extents of one block status, in each context. */
  extentsMax: number;
};

export const SERVER_LIMITS: ServerLimits = {
  connectionsMax: 128,
  connectionsPerAddressMax: 96,
  handshakesMax: HANDSHAKES.placesMax,
  handshakesPerAddressMax: HANDSHAKES.placesOfKeyMax,
  handshakeTimeoutMs: 15_000,
  optionBytesMax: 16 * 1024,
  optionsMax: 256,
  handshakeOutputBytesMax: 64 * 1024,
  requestBytesMax: 32 * 1024 * 1024,
  payloadBytesMax: 64 * 1024 * 1024,
  requestsMax: 128,
  extentsMax: 4096,
};
