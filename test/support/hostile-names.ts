import assert from 'node:assert/strict';
import { request } from 'node:http';
import { json } from 'node:stream/consumers';
import type { TSchema } from 'typebox';
import { Value } from 'typebox/value';

/**
 * Requests of every route with names in them that lead elsewhere, made of what a worker says of itself in
 * /openapi.json: a route that is added tomorrow is tried too.
 */

export const HOSTILE = [
  '../x',
  'a/b',
  '.',
  '..',
  '../../etc',
  '\0',
  'a\0b',
  'x'.repeat(300),
  'a b',
  'a\n',
  ' ',
  '',
];

/**
 * Texts that name nothing in a folder of the worker, each with what becomes of it. A new one belongs here, or
 * gets a pattern.
 */
const NO_NAMES: readonly (readonly [RegExp, string])[] = [
  [/\.(command|command\.0)$/, 'executed in the machine'],
  [/\.(env|metadata)\.\*$/, 'given to the machine'],
  [/\.(user|workingDirectory)$/, 'looked up in the machine'],
  [/\.(mountPath|hostFolders\.0|devices\.0)$/, 'a whole path by its nature: jail/jail.ts judges it'],
  [/\.health\.(host|url|command\.0)$/, 'asked in the network of the machine'],
  [/\.group$/, 'compared'],
  [/^importVolume\.source$/, 'a URI, or a whole path: worker/imports.ts judges it'],
  [/^serveVolume\.listen$/, 'an address, or a whole path: sys/named-path.ts judges it'],
  [/\.sourceUrl$/, 'asked, never opened'],
  [/\.source\.(host|chapUser|chapSecret)$/, 'connected to, compared'],
  [/\.(uuid|cipher|hash)$/, 'compared with what is in the header'],
  [/\.(userspaceOnly|ailing)$/, 'the end of a sentence'],
  [/^(handoff\.freeMap|compare\.ranges\.0\.digests)$/, 'decoded'],
  [/^countersign\./, 'verified, and kept in the database'],
  [/^listRuns\.(resource|kind|cursor)$/, 'compared in the database'],
];

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
type Schema = {
  type?: string;
  const?: Json;
  enum?: Json[];
  default?: Json;
  pattern?: string;
  minLength?: number;
  minimum?: number;
  minItems?: number;
  required?: string[];
  properties?: Record<string, Schema>;
  patternProperties?: Record<string, Schema>;
  additionalProperties?: boolean | Schema;
  items?: Schema;
  anyOf?: Schema[];
  allOf?: Schema[];
};
export type Operation = {
  operationId: string;
  parameters?: { in: 'path' | 'query'; name: string; schema: Schema }[];
  requestBody?: { content: Record<string, { schema: Schema }> };
};

/** Texts, one of which fits every pattern of the API. */
const TEXTS = ['abc', 'SIGTERM', '/abc', '/dev/null', '7'.repeat(64), 'twelve bytes'];

/**
 * A value that fits, and every place in it that has a free text: the pointer, and how the value is with
 * another text there.
 */
type Sample = { value: Json; texts: { at: string; having: (text: string) => Json }[] };

function sampleOf(schema: Schema, at: string): Sample {
  if (schema.const !== undefined) return { value: schema.const, texts: [] };
  if (schema.anyOf) {
    const samples = schema.anyOf.map((each) => sampleOf(each, at));
    return { value: samples[0]!.value, texts: samples.flatMap(({ texts }) => texts) };
  }
  if (schema.allOf) {
    const parts = schema.allOf.map((each) => sampleOf(each, at));
    const all = (values: Json[]) => Object.assign({}, ...(values as object[])) as Json;
    const texts = parts.flatMap((part, index) =>
      part.texts.map((text) => ({
        at: text.at,
        having: (wanted: string) =>
          all(parts.map((each, other) => (other === index ? text.having(wanted) : each.value))),
      })),
    );
    return { value: all(parts.map(({ value }) => value)), texts };
  }
  if (schema.enum) return { value: schema.enum[0]!, texts: [] };
  switch (schema.type) {
    case 'string': {
      const pattern = new RegExp(schema.pattern ?? '');
      const fits = TEXTS.find((text) => pattern.test(text) && text.length >= (schema.minLength ?? 0));
      assert.ok(fits !== undefined, `${at}: no sample for ${schema.pattern}`);
      return { value: fits, texts: [{ at, having: (text) => text }] };
    }
    case 'integer':
    case 'number':
      return { value: Math.max(schema.minimum ?? 1, 1), texts: [] };
    case 'boolean':
      return { value: false, texts: [] };
    case 'null':
      return { value: null, texts: [] };
    case 'array': {
      const item = sampleOf(schema.items!, `${at}.0`);
      const texts = item.texts.map((text) => ({
        at: text.at,
        having: (wanted: string) => [text.having(wanted)],
      }));
      return { value: schema.minItems ? [item.value] : [], texts };
    }
    default: {
      const properties = Object.entries(schema.properties ?? {});
      const samples = properties.map(([name, each]) => [name, sampleOf(each, `${at}.${name}`)] as const);
      const value = Object.fromEntries(
        samples.filter(([name]) => schema.required?.includes(name)).map(([name, each]) => [name, each.value]),
      );
      const texts = samples.flatMap(([name, each]) =>
        each.texts.map((text) => ({
          at: text.at,
          having: (wanted: string) => ({ ...value, [name]: text.having(wanted) }),
        })),
      );
      const { additionalProperties: others } = schema;
      const any =
        Object.values(schema.patternProperties ?? {})[0] ?? (typeof others === 'object' ? others : undefined);
      const more = any === undefined ? [] : sampleOf(any, `${at}.*`).texts;
      return {
        value,
        texts: [
          ...texts,
          ...more.map((text) => ({
            at: text.at,
            having: (wanted: string) => ({ abc: text.having(wanted) }),
          })),
        ],
      };
    }
  }
}

export type Reply = { status: number; code: string | null };
/** `body` undefined: none. */
export type Ask = (method: string, path: string, body: Json | undefined) => Promise<Reply>;

/** Paths as they are, which neither fetch nor fastify's inject leaves them. */
export function asking(url: string, token: string): Ask {
  return (method, path, body) =>
    new Promise<Reply>((resolve, reject) => {
      const text = body === undefined ? undefined : JSON.stringify(body);
      const sent = request(
        new URL(url),
        {
          method,
          path,
          headers: {
            authorization: `Bearer ${token}`,
            ...(text !== undefined && {
              'content-type': 'application/json',
              'content-length': Buffer.byteLength(text),
            }),
          },
        },
        (response) => {
          json(response).then((reply) => {
            const { error } = reply as { error?: { code: string } };
            resolve({ status: response.statusCode!, code: error?.code ?? null });
          }, reject);
        },
      );
      sent.on('error', reject);
      sent.end(text);
    });
}

/**
 * Asks every route for all of that, and asserts that each is refused before anything is looked for. Resolves
 * with how many places were tried.
 */
export async function tryHostileNames(
  paths: Record<string, Record<string, Operation>>,
  ask: Ask,
): Promise<{ path: number; query: number; body: number }> {
  const refused = async (where: string, method: string, path: string, body?: Json) => {
    const { status, code } = await ask(method.toUpperCase(), path, body);
    // Of an empty part of a path the router says that there is no such route.
    const isEdge = (status === 400 && code === 'API_INVALID_REQUEST') || code === 'API_NO_ROUTE';
    assert.ok(isEdge, `${where}: ${status} ${code}`);
  };
  const tried = { path: 0, query: 0, body: 0 };
  const unused = new Set(NO_NAMES.map(([pattern]) => pattern));
  const isNoName = (at: string): boolean => {
    const found = NO_NAMES.find(([pattern]) => pattern.test(at));
    if (found) unused.delete(found[0]);
    return found !== undefined;
  };
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, { operationId, parameters = [], requestBody }] of Object.entries(methods)) {
      const filled = (at?: string, text = '') =>
        path.replaceAll(/\{(\w+)\}/g, (_, name) => encodeURIComponent(name === at ? text : 'abc'));
      const body = requestBody?.content['application/json']?.schema;
      const sample = body && sampleOf(body, operationId);
      if (body && sample)
        assert.ok(
          Value.Check(body as TSchema, sample.value),
          `${operationId}: ${JSON.stringify(sample.value)}`,
        );
      for (const { in: place, name, schema } of parameters) {
        if (place === 'query' && (schema.type !== 'string' || isNoName(`${operationId}.${name}`))) continue;
        tried[place]++;
        for (const text of HOSTILE) {
          const where = `${operationId} ${name}=${JSON.stringify(text.slice(0, 20))}`;
          if (place === 'path') await refused(where, method, filled(name, text), sample?.value);
          else await refused(where, method, `${filled()}?${name}=${encodeURIComponent(text)}`, sample?.value);
        }
      }
      for (const { at, having } of sample?.texts ?? []) {
        if (isNoName(at)) continue;
        tried.body++;
        assert.ok(
          Value.Check(body as TSchema, having(sampleTextOf(body!, having))),
          `${at}: the sample fits`,
        );
        for (const text of HOSTILE)
          await refused(`${at}=${JSON.stringify(text.slice(0, 20))}`, method, filled(), having(text));
      }
    }
  }
  assert.deepEqual([...unused], [], 'of no text of any route any more');
  return tried;
}

/** The text that fits where `having` puts it. */
function sampleTextOf(schema: Schema, having: (text: string) => Json): string {
  return TEXTS.find((text) => Value.Check(schema as TSchema, having(text))) ?? '';
}
