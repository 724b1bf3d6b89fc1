import { stripTypeScriptTypes } from 'node:module';
import { parse } from 'acorn';
import { walk } from './syntax.ts';

/**
 * What may only become less (scripts/measures.json): each is counted over the product's sources, tests left
 * out.
 */
export type Measures = { longFunctions: number; longComments: number; unusedExports: number };

export const FUNCTION_LINES_MAX = 70;
export const COMMENT_COLUMNS_MAX = 110;

export type Source = { path: string; text: string };

/**
 * `product`: what is measured; `others`: what may use it beside. Each finding as `path:line what`, for a
 * person.
 */
export function findings(
  product: readonly Source[],
  others: readonly Source[],
): { [Measure in keyof Measures]: string[] } {
  return {
    longFunctions: product.flatMap(longFunctions),
    longComments: product.flatMap(longComments),
    unusedExports: unusedExports(product, others),
  };
}

/**
 * Functions whose body has more lines than fit on a page. One that only holds others (a class, a closure of a
 * module) counts too: it has to be read as one.
 */
function longFunctions({ path, text }: Source): string[] {
  // Types become blanks, so that lines and columns stay.
  const tree = parse(stripTypeScriptTypes(text), {
    ecmaVersion: 'latest',
    sourceType: 'module',
    locations: true,
    allowHashBang: true,
  });
  const found: string[] = [];
  walk(tree, (node) => {
    if (!/Function/.test(node.type) || !node.loc) return true;
    const lines = node.loc.end.line - node.loc.start.line + 1;
    if (lines > FUNCTION_LINES_MAX) found.push(`${path}:${node.loc.start.line} a function of ${lines} lines`);
    return true;
  });
  return found;
}

function longComments({ path, text }: Source): string[] {
  return text.split('\n').flatMap((line, index) => {
    const isComment = /^\s*(?:\/\/|\/\*|\*)/.test(line);
    return isComment && line.length > COMMENT_COLUMNS_MAX
      ? [`${path}:${index + 1} a comment of ${line.length} columns`]
      : [];
  });
}

/**
 * Exported classes, functions and values that no other file says: they need no export, or are not needed.
 * Types go with what they are of.
 */
function unusedExports(product: readonly Source[], others: readonly Source[]): string[] {
  const words = new Map<string, Set<string>>();
  for (const { path, text } of [...product, ...others])
    for (const [word] of text.matchAll(/[A-Za-z_$][\w$]*/g)) {
      const paths = words.get(word);
      if (paths === undefined) words.set(word, new Set([path]));
      else paths.add(path);
    }
  return product.flatMap(({ path, text }) =>
    [...text.matchAll(/^export (?:abstract |async |declare )*(?:class|const|function\*?|let) ([\w$]+)/gm)]
      .map((match) => match[1]!)
      .filter((name) => words.get(name)?.size === 1)
      .map((name) => `${path} nobody else says ${name}`),
  );
}
