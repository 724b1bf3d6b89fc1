import { GodwitError } from './errors.ts';
import { misfitOf, type Shape, type ShapeValue } from './shape.ts';

const SAME_VERSION = 'Both processes must be of the same godwit version; restart the machine.';

/**
 * One operation of a conversation in JSON lines (line-rpc.ts), as data. Who answers is checked against the
 * table and called through it (`performLine`); who asks has its types from it. A new operation is a row and
 * the method that answers it.
 */
export type LineOperation<Args = unknown, Reply = unknown> = {
  /** One sentence, without its full stop. */
  readonly summary: string;
  readonly args: Shape<Args>;
  /** Codes of errors that it rejects with, beside those of any operation. */
  readonly errors?: readonly string[];
  /**
   * How long the answer is waited for, where who asks says nothing: for as long as the other process answers
   * how it is (`alive`), or for as long as earlier answers took (`measured`): of the question how it is.
   */
  readonly patience: 'alive' | 'measured';
  /**
   * It came later, with this release: one of before refuses it, which who asks hears as `RPC_EARLIER_VERSION`
   * (later-question.ts). Arguments that come later are a hint: one of before does not look at them.
   */
  readonly since?: string;
  /** Also answered while the process that answers comes to its end. */
  readonly whileEnding?: true;
  /** Only for the type. */
  readonly reply?: Reply;
};
export type LineConversation = Readonly<Record<string, LineOperation>>;

export type LineArgs<Row> = Row extends { args: infer S } ? ShapeValue<S> : never;
export type LineReply<Row> = Row extends LineOperation<infer _, infer Reply> ? Reply : never;

/** Whoever answers a conversation. */
export type LineAnswers<C extends LineConversation> = {
  [Op in keyof C]: (args: LineArgs<C[Op]>) => Promise<LineReply<C[Op]>>;
};

/** A row; `reply` is in the type only. */
export function row<Args>(operation: Omit<LineOperation<Args>, 'reply'>) {
  return <Reply>(): LineOperation<Args, Reply> => operation;
}

/**
 * The answer to one operation. Rejects `RPC_UNKNOWN_OP` for one that is not in the table, `RPC_BAD_NAME` for
 * an argument that is to be an id and is none, `RPC_BAD_ARGUMENTS` for others that do not fit, and as the
 * answer does.
 */
export async function performLine<C extends LineConversation>(
  conversation: C,
  answers: LineAnswers<C>,
  op: string,
  args: unknown,
): Promise<unknown> {
  const asked = args ?? {};
  checkArguments(operationOf(conversation, op), op, asked);
  return (await answers[op as keyof C](asked as never)) ?? {};
}

/** Rejects `RPC_UNKNOWN_OP`. */
export function operationOf(conversation: LineConversation, op: string): LineOperation {
  if (Object.hasOwn(conversation, op)) return conversation[op]!;
  throw new GodwitError('RPC_UNKNOWN_OP', `there is no operation ${op} here`, {
    values: { op },
    nextAction: SAME_VERSION,
  });
}

function checkArguments({ args }: LineOperation, op: string, value: unknown): void {
  const misfit = misfitOf(args, value, op);
  if (misfit === null) return;
  const options = { values: { op }, nextAction: SAME_VERSION };
  if (!misfit.isName)
    throw new GodwitError('RPC_BAD_ARGUMENTS', misfit.message, { ...options, retry: 'never' });
  const message = `${op} was asked for something that is no id`;
  throw new GodwitError('RPC_BAD_NAME', message, { ...options, retry: 'never' });
}
