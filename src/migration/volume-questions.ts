import type { PEER } from '../contract/peer.ts';
import { VOLUME_QUESTIONS } from '../contract/peer.ts';
import type { OperationArgs, OperationResult } from '../opening/operations.ts';

type Rows = typeof PEER;
/** The questions between workers that go on to the volume of the move (`Endpoint.ofVolume`). */
export type VolumeQuestion = {
  [Name in keyof Rows]: Rows[Name] extends { ofVolume: string } ? Name : never;
}[keyof Rows];

/** Whoever passes them on or answers them; `Move` is what says which move it is. */
export type VolumeQuestions<Move> = {
  [Op in VolumeQuestion]: (move: Move, args: OperationArgs<Op>) => Promise<OperationResult<Op>>;
};

export interface VolumeAsker<Move> {
  askVolume<Op extends VolumeQuestion>(
    move: Move,
    op: Op,
    args: OperationArgs<Op>,
  ): Promise<OperationResult<Op>>;
}

/**
 * A class with a method for each of these questions, which goes through its own `askVolume`, but for `own`.
 */
export function askingVolume<Move, Own extends VolumeQuestion = never>(
  ...own: Own[]
): abstract new () => Omit<VolumeQuestions<Move>, Own> & VolumeAsker<Move> {
  abstract class Asking implements VolumeAsker<Move> {
    abstract askVolume<Op extends VolumeQuestion>(
      move: Move,
      op: Op,
      args: OperationArgs<Op>,
    ): Promise<OperationResult<Op>>;
  }
  for (const op of VOLUME_QUESTIONS as readonly VolumeQuestion[]) {
    if ((own as VolumeQuestion[]).includes(op)) continue;
    Object.defineProperty(Asking.prototype, op, {
      value(this: VolumeAsker<Move>, move: Move, args: OperationArgs<typeof op>) {
        return this.askVolume(move, op, args);
      },
    });
  }
  return Asking as unknown as abstract new () => Omit<VolumeQuestions<Move>, Own> & VolumeAsker<Move>;
}
