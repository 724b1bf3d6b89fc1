import koffi from 'koffi';
import { running } from './simulation.ts';

/**
 * System calls that go through the thread pool are made at once for a simulated process: which thread is
 * done first is no seed's. To be imported before what makes such calls (start.ts).
 */
type Library = ReturnType<typeof koffi.load>;
type Native = ((...args: unknown[]) => unknown) & { async: (...args: unknown[]) => unknown };

const { load } = koffi;
koffi.load = (...args: Parameters<typeof load>): Library => {
  const library = load(...args);
  const makeNative = library.func.bind(library) as (...how: unknown[]) => Native;
  const func = (...how: unknown[]) => atOnce(makeNative(...how));
  return Object.create(library, { func: { value: func } }) as Library;
};

function atOnce(native: Native): Native {
  const pooled = native.async;
  const async = (...args: unknown[]): unknown => {
    if (running.getStore() === undefined) return pooled(...args);
    const done = args.pop() as (error: unknown, result: unknown) => void;
    done(null, native(...args));
    return undefined;
  };
  return Object.assign((...args: unknown[]) => native(...args), native, { async });
}
