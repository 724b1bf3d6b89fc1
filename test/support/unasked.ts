import assert from 'node:assert/strict';

/** Answers to questions that a test does not mean to be asked; what it plays it puts over them. */
export function unasked<Answers>(names: readonly string[]): Answers {
  const answer = (name: string) => async () => assert.fail(`nobody asks ${name} here`);
  return Object.fromEntries(names.map((name) => [name, answer(name)])) as Answers;
}
