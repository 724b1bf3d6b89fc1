/** NBD (the NetworkBlockDevice protocol): a server that exports block devices, and a client that is one. */
export {
  NbdClient,
  type NbdClientOptions,
  type NbdClientState,
  type NbdClientStatistics,
  type NbdIdentity,
  type NbdReadOptions,
} from './client.ts';
export { isNbdUri, type NbdAddress, type NbdUri, parseNbdUri } from './client-uri.ts';
export type { HydrationExtent, HydrationExtents, NbdExportOptions } from './export.ts';
export { SERVER_LIMITS, type ServerLimits } from './limits.ts';
export { ALLOCATION_CONTEXT, HYDRATION_CONTEXT } from './protocol.ts';
export { NbdServer, type NbdServerOptions, type NbdServerStatistics, type NbdServerTls } from './server.ts';
