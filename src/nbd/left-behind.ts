/** A change of a range that the device works on. */
export type Change = {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly over: Promise<void>;
};

/**
 * Changes that connections left behind when they ended: the device still works on them, and nobody can take
 * them back. Whoever comes after has been answered nothing of them, may be the same client (a machine that is
 * started again, a disk that sends again what was not answered), and must not find an old change on its new
 * one: so what overlaps waits.
 */
export class LeftBehind {
  readonly #changes = new Set<Change>();

  add(change: Change): void {
    this.#changes.add(change);
    void change.over.then(() => this.#changes.delete(change));
  }

  /** Resolves when the device is through with all that overlaps now. null: nothing does. */
  before(offsetBytes: number, lengthBytes: number): Promise<unknown> | null {
    if (this.#changes.size === 0) return null;
    const end = offsetBytes + lengthBytes;
    const overlapping = [...this.#changes].filter(
      (change) => change.offsetBytes < end && offsetBytes < change.offsetBytes + change.lengthBytes,
    );
    return overlapping.length === 0 ? null : Promise.all(overlapping.map(({ over }) => over));
  }
}
