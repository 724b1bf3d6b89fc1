/** In how many turns of this process's event loop `work` was done. */
export async function turnsOf(work: () => Promise<unknown>): Promise<number> {
  let turns = 0;
  const count = (): void => {
    turns += 1;
    turning = setImmediate(count);
  };
  let turning = setImmediate(count);
  try {
    await work();
  } finally {
    clearImmediate(turning);
  }
  return turns;
}
