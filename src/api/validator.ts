import type { FastifySchemaCompiler } from 'fastify';
import type { TSchema } from 'typebox';
import { Compile } from 'typebox/compile';
import type { TLocalizedValidationError } from 'typebox/error';
import { Convert, Default } from 'typebox/value';
import { GodwitError } from '../base/errors.ts';
import { NAME_PATTERN } from '../contract/schemas.ts';

/**
 * Compiles the schema of one part of a request (body, query string, path). Bodies are taken as they are;
 * query strings and paths, which are all strings, are converted first. Defaults are filled in.
 */
export const validatorCompiler: FastifySchemaCompiler<TSchema> = (route) => {
  // With the first request: to compile all of them is an eighth of what a worker does at its start.
  let validate: ReturnType<typeof readyValidatorCompiler> | undefined;
  return (input: unknown) => {
    validate ??= readyValidatorCompiler(route);
    return validate(input);
  };
};

/** The same, compiled beforehand: for what is asked while a machine is down. */
export const readyValidatorCompiler: FastifySchemaCompiler<TSchema> = ({ schema, httpPart }) => {
  const validator = Compile(schema);
  const converted = httpPart === 'querystring' || httpPart === 'params';
  return (input: unknown) => {
    const value = Default(schema, converted ? Convert(schema, input) : input);
    if (validator.Check(value)) return { value };
    const what = describe(validator.Errors(value));
    // A sentence by itself, for a person.
    const message = what.startsWith(': the ') ? what.slice(2) : `${httpPart ?? 'request'}${what}`;
    return {
      error: new GodwitError('API_INVALID_REQUEST', message, {
        values: { part: httpPart ?? 'request' },
        retry: 'never',
        nextAction: 'Correct the request; /openapi.json has the schema of every route.',
      }),
    };
  };
};

/** The error that a person can use best, as ` /path: what`. */
export function describe(errors: readonly TLocalizedValidationError[]): string {
  // Of a tagged union only the branch whose tag matches has something to say.
  const branchOf = (error: TLocalizedValidationError) =>
    /^(.*)\/anyOf\/\d+(?=\/|$)/.exec(error.schemaPath)?.[0] ?? null;
  const wrongBranches = new Set(
    errors
      .filter((error) => error.keyword === 'const')
      .map(branchOf)
      .filter((branch) => branch !== null),
  );
  const inWrongBranch = (error: TLocalizedValidationError) => {
    const branch = branchOf(error);
    return branch !== null && wrongBranches.has(branch);
  };
  const tagged = errors.filter((error) => !inWrongBranch(error));
  for (const error of tagged) {
    if (error.keyword === 'additionalProperties') {
      return at(error, `unknown property ${error.params.additionalProperties.join(', ')}`);
    }
  }
  for (const union of errors.filter(({ keyword }) => keyword === 'anyOf')) {
    const inside = ({ schemaPath }: TLocalizedValidationError) =>
      schemaPath.startsWith(`${union.schemaPath}/anyOf/`);
    const tags = errors.filter((error) => inside(error) && error.keyword === 'const');
    if (tags.length === 0 || tagged.some(inside)) continue;
    const allowed = tags.map((error) =>
      'allowedValue' in error.params ? String(error.params.allowedValue) : '',
    );
    return at(tags[0]!, `must be one of ${[...new Set(allowed)].join(', ')}`);
  }
  // `anyOf` and `unevaluatedProperties` follow from the errors inside them, `boolean` repeats
  // additionalProperties.
  const telling = tagged.filter(
    ({ keyword }) => !['anyOf', 'allOf', 'boolean', 'unevaluatedProperties'].includes(keyword),
  );
  // When a branch fails, typebox has not filled in the defaults beside it, and they are reported as missing.
  const first = telling.find((error) => branchOf(error) !== null) ?? telling[0];
  if (first) return inUnits(first) ?? aName(first) ?? at(first, first.message);
  for (const error of errors) {
    if (error.keyword === 'unevaluatedProperties') {
      return at(error, `unknown property ${error.params.unevaluatedProperties.join(', ')}`);
    }
  }
  const last = errors[0];
  return last ? at(last, last.message) : ': does not match its schema';
}

const BINARY_UNITS = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'];
const TIME_UNITS: readonly (readonly [number, string])[] = [
  [86_400_000, 'd'],
  [3_600_000, 'h'],
  [60_000, 'min'],
  [1_000, 's'],
];

/**
 * A bound of a size or a time as a person says it: `: the length must be at least 16 MiB`. null: it is no
 * such bound.
 */
function inUnits({ keyword, instancePath, params }: TLocalizedValidationError): string | null {
  const [, name, unit] = /\/([a-zA-Z]+)(Bytes|Ms)$/.exec(instancePath) ?? [];
  const limit = 'limit' in params ? Number(params.limit) : Number.NaN;
  if (name === undefined || !Number.isFinite(limit)) return null;
  if (keyword !== 'minimum' && keyword !== 'maximum') return null;
  const words = name.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
  const bound = unit === 'Bytes' ? bytesText(limit) : timeText(limit);
  return `: the ${words} must be at ${keyword === 'minimum' ? 'least' : 'most'} ${bound}`;
}

/** What a name may be, for who has not read the schema. null: it is not about one. */
function aName({ keyword, instancePath, params }: TLocalizedValidationError): string | null {
  const isName = keyword === 'pattern' && 'pattern' in params && String(params.pattern) === NAME_PATTERN;
  if (!isName) return null;
  const [, field = 'name'] = /\/([a-zA-Z]+)$/.exec(instancePath) ?? [];
  return `: the ${field} must be 1 to 63 of a-z, 0-9 and "-", without "-" at its ends`;
}

/** Exact: in the largest unit of which it is a whole number. */
function bytesText(bytes: number): string {
  let [value, unit] = [bytes, 0];
  for (; value >= 1024 && value % 1024 === 0 && unit < BINARY_UNITS.length - 1; unit++) value /= 1024;
  return `${value} ${BINARY_UNITS[unit]}`;
}

function timeText(ms: number): string {
  const [unitMs, name] = TIME_UNITS.find(([each]) => ms >= each && ms % each === 0) ?? [1, 'ms'];
  return `${ms / unitMs} ${name}`;
}

function at(error: TLocalizedValidationError, what: string): string {
  return `${error.instancePath === '' ? '' : ` ${error.instancePath}`}: ${what}`;
}
