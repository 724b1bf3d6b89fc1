/**
 * Sizes libuv's thread pool, for a process that works on a slow disk: its threads wait in fsyncs, reads of
 * the disk and writes of what was fetched, and with the default four a few of these hold up all others. As
 * many as a disk has requests of ours in its queue, and one is left for digests. A thread that was never used
 * costs nothing. Import it before everything else: the pool is made at its first use, and never changed.
 * Whoever started the process may have chosen another size.
 */
export const THREADS = 32;

process.env.UV_THREADPOOL_SIZE ??= String(THREADS);
