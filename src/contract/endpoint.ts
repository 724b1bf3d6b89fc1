import type { Static, TSchema } from 'typebox';

/**
 * One question of a conversation, as data. Router, client, OpenAPI and test doubles are made of tables of
 * these (`Conversation`), so a new question is a row here and a handler where it is answered.
 */
export type Endpoint = {
  /** One sentence, without its full stop. */
  readonly summary: string;
  readonly tag: string;
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  /** With `:name` for each parameter. */
  readonly path: `/${string}`;
  /** Of each parameter of the path. */
  readonly parameter?: TSchema;
  /** That parameter of the path is in the body too; who asks says it only there. */
  readonly inBody?: string;
  readonly query?: TSchema;
  readonly body?: TSchema;
  /** What is sent where who asks says nothing. */
  readonly given?: Readonly<Record<string, unknown>>;
  /**
   * What came later. A text: the whole question, with that release; one of before has no such route, which
   * who asks hears as `API_EARLIER_VERSION` (base/later-question.ts).
   * Or parts of the body or query, each with the word by which a worker says that it knows it. One of an
   * earlier version refuses what it does not know. So between workers such a part goes to who has said its
   * word (`CallOptions.knows`), and is a hint by that; an operator's goes where it says more than its
   * default.
   */
  readonly since?: string | Readonly<Record<string, string>>;
  /**
   * Goes on to the open volume that it is about, which has an operation of this name (opening/operations.ts):
   * of a move whose blocks are all there and not proved yet, or as long as they arrive.
   */
  readonly ofVolume?: 'whole' | 'arriving';
  /** Left out: nothing, which is an empty object on the wire. */
  readonly reply?: TSchema;
  /** On the wire the reply is the only field of an object, which can have others later. */
  readonly field?: string;
  /** Default 200. */
  readonly status?: 200 | 201 | 202;
  /** What of a reply leaves the worker. Default: all. */
  readonly shown?: (reply: never) => unknown;
  /** A POST that may be sent twice. All other methods may. */
  readonly idempotent?: true;
  /**
   * How long a person waits for the whole answer, where the client's own patience is too short; workers never
   * end a call for being slow.
   */
  readonly deadlineMs?: number | ((body: never) => number);
  /**
   * Who may ask: anybody at all, who has the token, or another worker (which has a certificate, where there
   * are any).
   */
  readonly caller: 'anybody' | 'operator' | 'worker';
};

export type Conversation = Readonly<Record<string, Endpoint>>;

export type CallOptions = {
  /** When it aborts, the call rejects with its reason, and the outcome is unknown. */
  signal?: AbortSignal | undefined;
  /** Instead of the deadline of the endpoint. */
  timeoutMs?: number | undefined;
  /** The words that the worker which is asked has said (`Endpoint.since`). Left out: none. */
  knows?: readonly string[] | undefined;
};

/** One call, as it goes over the wire. */
export type Request = {
  path: string;
  /** The parameters of the path, by name. */
  parameters: Readonly<Record<string, string>>;
  query?: Readonly<Record<string, unknown>>;
  body?: unknown;
};

type PathStrings<Path extends string> = Path extends `${string}:${string}/${infer Rest}`
  ? [string, ...PathStrings<`/${Rest}`>]
  : Path extends `${string}:${string}`
    ? [string]
    : [];

type PathArguments<E extends Endpoint> = E extends { inBody: string } ? [] : PathStrings<E['path']>;

type Input<E extends Endpoint> = E extends { body: infer Body extends TSchema }
  ? [Static<Body>]
  : E extends { query: infer Query extends TSchema }
    ? [Static<Query>]
    : [];

type Without<Body, Given> = Omit<Body, keyof Given> & { [Key in keyof Body & keyof Given]?: Body[Key] };

type Asked<E extends Endpoint> = E extends { body: infer Body extends TSchema }
  ? E extends { given: infer Given }
    ? Partial<Without<Static<Body>, Given>> extends Without<Static<Body>, Given>
      ? [input?: Without<Static<Body>, Given>]
      : [input: Without<Static<Body>, Given>]
    : [input: Static<Body>]
  : E extends { query: infer Query extends TSchema }
    ? [input?: Partial<Static<Query>>]
    : [];

type Replies<E extends Endpoint> = E extends { reply: infer Reply extends TSchema }
  ? Promise<Static<Reply>>
  : Promise<void>;

/** How an endpoint is asked: the parameters of its path in their order, then its body or its query. */
export type Ask<E extends Endpoint> = (
  ...args: [...PathArguments<E>, ...Asked<E>, options?: CallOptions]
) => Replies<E>;

/** The same at the other end, with every default filled in. */
export type Answer<E extends Endpoint> = (...args: [...PathArguments<E>, ...Input<E>]) => Replies<E>;

export type Asks<C extends Conversation> = { [Name in keyof C]: Ask<C[Name]> };

/** Whoever answers a conversation. */
export type Answers<C extends Conversation> = { [Name in keyof C]: Answer<C[Name]> };

/** The names of the path's parameters, in its order. */
export function parametersOf({ path }: Endpoint): string[] {
  return [...path.matchAll(/:(\w+)/g)].map((match) => match[1]!);
}

/** The parts of its body or query that came later, with their words. */
export function laterParts({ since = {} }: Endpoint): Readonly<Record<string, string>> {
  return typeof since === 'string' ? {} : since;
}

/** All words of the parts that came later, for who answers a conversation to say. */
export function wordsOf(conversation: Conversation): string[] {
  return [...new Set(Object.values(conversation).flatMap((row) => Object.values(laterParts(row))))];
}

/** The parts that `input` has and that go unsaid to who knows these words. */
export function unsaidParts(endpoint: Endpoint, input: object, knows: readonly string[] = []): string[] {
  const { caller, query, body } = endpoint;
  const { properties = {} } = (query ?? body ?? {}) as { properties?: Record<string, { default?: unknown }> };
  return Object.entries(laterParts(endpoint)).flatMap(([part, word]) => {
    const value = (input as Record<string, unknown>)[part];
    const isSaid = caller === 'worker' ? knows.includes(word) : value !== properties[part]?.default;
    return value === undefined || isSaid ? [] : [part];
  });
}

/** What `Ask` was called with, as it goes over the wire. */
function requestOf(endpoint: Endpoint, args: readonly unknown[]): { request: Request; options: CallOptions } {
  const names = parametersOf(endpoint);
  const { inBody, query, body, given } = endpoint;
  const rest = inBody === undefined ? args.slice(names.length) : args;
  const hasInput = body !== undefined || query !== undefined;
  const options = (rest[hasInput ? 1 : 0] as CallOptions | undefined) ?? {};
  const input = hasInput ? { ...given, ...(rest[0] as object | undefined) } : undefined;
  for (const part of unsaidParts(endpoint, input ?? {}, options.knows))
    delete (input as Record<string, unknown>)[part];
  const values = inBody === undefined ? args : names.map((name) => (input as Record<string, unknown>)[name]);
  const parameters = Object.fromEntries(names.map((name, index) => [name, String(values[index])]));
  return {
    request: {
      path: endpoint.path.replace(/:(\w+)/g, (_, name: string) => encodeURIComponent(parameters[name]!)),
      parameters,
      ...(query !== undefined && { query: input as Record<string, unknown> }),
      ...(body !== undefined && { body: input }),
    },
    options,
  };
}

/** The arguments of `Answer`, from what came over the wire. */
export function argumentsOf(
  endpoint: Endpoint,
  came: { parameters: Readonly<Record<string, string>>; query: unknown; body: unknown },
): unknown[] {
  const values =
    endpoint.inBody === undefined ? parametersOf(endpoint).map((name) => came.parameters[name]) : [];
  if (endpoint.body !== undefined) return [...values, came.body];
  return endpoint.query === undefined ? values : [...values, came.query];
}

/**
 * Whoever carries calls out: over the wire, or in memory. `name` is that of the endpoint in its conversation.
 */
export interface Caller {
  call(name: string, endpoint: Endpoint, request: Request, options: CallOptions): Promise<unknown>;
}

/** A class with a method for each question of a conversation, which goes through its own `call`. */
export function asking<C extends Conversation>(conversation: C): abstract new () => Asks<C> & Caller {
  abstract class Asking implements Caller {
    abstract call(name: string, endpoint: Endpoint, request: Request, options: CallOptions): Promise<unknown>;
  }
  for (const [name, endpoint] of Object.entries(conversation)) {
    Object.defineProperty(Asking.prototype, name, {
      value(this: Caller, ...args: unknown[]) {
        const { request, options } = requestOf(endpoint, args);
        return this.call(name, endpoint, request, options);
      },
    });
  }
  return Asking as unknown as abstract new () => Asks<C> & Caller;
}

/** An answer, where the types of its row are not at hand. */
export type AnyAnswer = (...args: unknown[]) => Promise<unknown>;

type All<Parts> = Parts extends readonly [infer First, ...infer Rest] ? First & All<Rest> : unknown;

/**
 * One that answers a conversation, of several that answer parts of it; of two that answer the same the first
 * does.
 */
export function answering<C extends Conversation, Parts extends readonly object[]>(
  conversation: C,
  ...parts: All<Parts> extends Answers<C> ? Parts : never
): Answers<C> {
  const answers = Object.keys(conversation).map((name) => {
    const owner = parts.find((part) => name in part) as unknown as Record<string, AnyAnswer>;
    return [name, owner[name]!.bind(owner)] as const;
  });
  return Object.fromEntries(answers) as unknown as Answers<C>;
}
