import assert from 'node:assert/strict';
import { test } from 'node:test';
import { findings } from './measures.ts';

const lines = (count: number) =>
  Array.from({ length: count }, (_, index) => `  f(${index} as number);`).join('\n');

test('a function is long from the seventy-first line on, whatever its form', () => {
  const text = [
    `export function short(): void {\n${lines(68)}\n}`,
    `function long<T>(value: T): void {\n${lines(69)}\n}`,
    `const arrow = async (): Promise<void> => {\n${lines(100)}\n};`,
    `class C {\n  #method(): void {\n${lines(70)}\n  }\n}`,
  ].join('\n');
  const { longFunctions } = findings([{ path: 'a.ts', text }], []);
  assert.deepEqual(longFunctions, [
    'a.ts:71 a function of 71 lines',
    'a.ts:142 a function of 102 lines',
    'a.ts:245 a function of 72 lines',
  ]);
});

test('comments are measured, code and text are not', () => {
  const long = 'x'.repeat(111);
  const text = `// ${long}\n/**\n * ${long}\n */\nconst a = '${long}'; // ${long}\n// short\n`;
  assert.equal(findings([{ path: 'a.ts', text }], []).longComments.length, 2);
});

test('an export is used where another file says its name', () => {
  const product = [
    { path: 'a.ts', text: 'export const used = 1;\nexport const alone = 1;\nexport function tested() {}\n' },
    { path: 'b.ts', text: "import { used } from './a.ts';\n" },
  ];
  const others = [{ path: 'a.test.ts', text: 'tested();' }];
  assert.deepEqual(findings(product, others).unusedExports, ['a.ts nobody else says alone']);
});
