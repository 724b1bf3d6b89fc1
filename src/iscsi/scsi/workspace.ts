import { nextTurn, turnIsLong } from '../../base/turn.ts';

/**
 * Memory that commands need beside the data that they move: to compare with, to repeat a block in. It is in
 * nobody's account, so of one unit only so many commands have some at a time, however many initiators ask
 * with a few bytes for a MiB; the others wait in the order in which they came.
 */
export class Workspace {
  readonly #placesMax: number;
  #taken = 0;
  readonly #row: (() => void)[] = [];

  constructor(placesMax: number) {
    this.#placesMax = placesMax;
  }

  /** One would begin at once. */
  get hasRoom(): boolean {
    return this.#taken < this.#placesMax;
  }

  async use<T>(work: () => Promise<T>): Promise<T> {
    if (this.hasRoom) this.#taken += 1;
    else await new Promise<void>((enter) => this.#row.push(enter));
    try {
      // What needs no thread would else go on in this turn, one command after the other.
      while (turnIsLong()) await nextTurn();
      return await work();
    } finally {
      // The place goes on to who waits, before anybody else can take it.
      const next = this.#row.shift();
      if (next === undefined) this.#taken -= 1;
      else next();
    }
  }
}
