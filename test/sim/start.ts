import './system-calls.ts';

/** `life.ts`, with the system calls of its process in the simulation's hands. */
export const { live } = await import('./life.ts');
