import { Type } from 'typebox';
import { OneOf } from './schema.ts';

/** The schema of `Retry`; errors.test.ts holds the two together. */
export const RetrySchema = OneOf('never', 'later', 'unknown');

/** The schema of `WireError`. */
export const WireErrorSchema = Type.Object({
  code: Type.String(),
  message: Type.String(),
  values: Type.Record(Type.String(), Type.Union([Type.String(), Type.Number(), Type.Boolean(), Type.Null()])),
  nextAction: Type.String(),
  /** Left out by versions that do not know it. */
  retry: Type.Optional(RetrySchema),
});
