import { stripTypeScriptTypes } from 'node:module';
import { type AnyNode, parse } from 'acorn';
import { walk } from './syntax.ts';

/** One small change to a source: `text` instead of what stands from `start` to `end`. */
export type Mutation = { path: string; line: number; start: number; end: number; text: string; was: string };

const OPERATORS: Readonly<Record<string, string>> = {
  '===': '!==',
  '!==': '===',
  '<': '<=',
  '<=': '<',
  '>': '>=',
  '>=': '>',
  '+': '-',
  '-': '+',
  '*': '/',
  '/': '*',
  '&': '|',
  '|': '&',
  '<<': '>>>',
  '>>>': '<<',
  '&&': '||',
  '||': '&&',
};
/** What is logged is no behaviour that a test is asked to see. */
const LOGGING = /\blogger\??\.|\blog\.(?:debug|info|warn|error)\(/;

/**
 * All changes to a source that its tests should see: another operator, a condition that always or never
 * holds, an `await` less, a call less, another number, the other boolean. What only logs, and the words and
 * values of an error, are left as they are.
 */
export function mutationsOf({ path, text }: { path: string; text: string }): Mutation[] {
  const code = stripTypeScriptTypes(text);
  const tree = parse(code, {
    ecmaVersion: 'latest',
    sourceType: 'module',
    locations: true,
    allowHashBang: true,
  });
  const found: Mutation[] = [];
  const change = (node: AnyNode, start: number, end: number, replacement: string): void => {
    found.push({
      path,
      line: node.loc!.start.line,
      start,
      end,
      text: replacement,
      was: text.slice(start, end),
    });
  };
  walk(tree, (node) => {
    if (node.type === 'ThrowStatement' || node.type === 'ImportDeclaration') return false;
    if (node.type === 'NewExpression' && /GodwitError/.test(code.slice(node.start, node.end))) return false;
    if (node.type === 'BinaryExpression' || node.type === 'LogicalExpression') {
      const other = OPERATORS[node.operator];
      // Between the two sides there is nothing but the operator, blanks and brackets.
      const at = code.indexOf(node.operator, node.left.end);
      const isText = [node.left, node.right].some(({ type }) => type === 'TemplateLiteral');
      if (other !== undefined && at < node.right.start && !isText)
        change(node, at, at + node.operator.length, other);
    }
    if (node.type === 'UnaryExpression' && node.operator === '!')
      change(node, node.start, node.start + 1, '');
    if (node.type === 'IfStatement' || node.type === 'ConditionalExpression')
      for (const value of ['true', 'false']) change(node, node.test.start, node.test.end, value);
    if (node.type === 'AwaitExpression') change(node, node.start, node.argument.start, '');
    if (node.type === 'ExpressionStatement' && isCall(node.expression)) {
      if (LOGGING.test(code.slice(node.start, node.end))) return false;
      change(node, node.start, node.end, ';');
    }
    if (node.type === 'Literal' && typeof node.value === 'number')
      change(node, node.start, node.end, `${node.value + 1}`);
    if (node.type === 'Literal' && typeof node.value === 'boolean')
      change(node, node.start, node.end, `${!node.value}`);
    return true;
  });
  return found;
}

function isCall(node: AnyNode): boolean {
  if (node.type === 'AwaitExpression' || (node.type === 'UnaryExpression' && node.operator === 'void'))
    return isCall(node.argument);
  if (node.type === 'ChainExpression') return isCall(node.expression);
  return node.type === 'CallExpression' && node.callee.type !== 'Super';
}

export function mutate(text: string, { start, end, text: replacement }: Mutation): string {
  return text.slice(0, start) + replacement + text.slice(end);
}
