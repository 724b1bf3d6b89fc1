/** NBD (the NetworkBlockDevice protocol): a server that exports block devices, and a client that is one. */
export type {
  ReadOptions,
  ReadPriority,
  RemoteState,
  RemoteStatistics,
} from '../remote/remote-disk.ts';
export { NbdClient } from './client.ts';
export type { NbdClientOptions, NbdIdentity } from './client-dialect.ts';
export { isNbdUri, type NbdAddress, type NbdUri, parseNbdUri } from './client-uri.ts';
export type { HydrationExtent, HydrationExtents, NbdExportOptions } from './export.ts';
export { SERVER_LIMITS, type ServerLimits } from './limits.ts';
export { ALLOCATION_CONTEXT, HYDRATION_CONTEXT } from './protocol.ts';
export { NbdServer, type NbdServerOptions, type NbdServerStatistics, type NbdServerTls } from './server.ts';
