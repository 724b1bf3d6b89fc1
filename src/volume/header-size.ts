/**
 * Sizes of the file with a volume's LUKS2 header. A file of its own: the command line needs it and none of
 * the code of encryption.ts.
 */

/** Of each of the two headers; the key slots have the rest of the file. */
export const BINARY_AND_JSON_BYTES = 16 * 1024;
/** A slot for a key of 64 bytes. */
const SLOT_BYTES = 258_048;
/** Two key slots: one in use, one for a change of the key. */
export const DEFAULT_HEADER_FILE_BYTES = 2 * BINARY_AND_JSON_BYTES + 2 * SLOT_BYTES;
/** One of cryptsetup's default size, and no more. */
export const HEADER_BYTES_MAX = 16 * 1024 * 1024;
