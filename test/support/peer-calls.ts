import type { ApiClient } from '../../src/api/client.ts';
import { asking, type CallOptions, type Endpoint, type Request } from '../../src/contract/endpoint.ts';
import { PEER } from '../../src/contract/peer.ts';

/** What a worker asks another, by a client that is none. */
export class PeerCalls extends asking(PEER) {
  readonly #client: ApiClient;

  constructor(client: ApiClient) {
    super();
    this.#client = client;
  }

  override call(_name: string, endpoint: Endpoint, request: Request, options: CallOptions): Promise<unknown> {
    return this.#client.ask(endpoint, request, options);
  }
}
