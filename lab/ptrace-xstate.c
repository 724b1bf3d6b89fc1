/*
 * Preload for linux.uml of Linux 6.1 on processors whose extended state is larger than it keeps (AMX: 11,008 bytes; UML: 2,696).
 * The kernel refuses a PTRACE_SETREGSET of NT_X86_XSTATE that is shorter than the state, and UML panics at its first system call.
 * So a short set becomes a full one: the state that the process has, with what UML sets written over its beginning and the AMX
 * components (bits 17 and 18 of XSTATE_BV, Intel SDM volume 1 section 13.4.2) marked as not in use. Does nothing elsewhere.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define GETREGSET 0x4204
#define SETREGSET 0x4205
#define X86_XSTATE 0x202
#define XSTATE_BV_OFFSET 512
#define AMX_COMPONENTS ((1ULL << 17) | (1ULL << 18))

static long raw(long request, long pid, void *address, void *data) {
  return syscall(SYS_ptrace, request, pid, address, data);
}

long ptrace(long request, ...) {
  va_list arguments;
  va_start(arguments, request);
  long pid = va_arg(arguments, long);
  void *address = va_arg(arguments, void *);
  void *data = va_arg(arguments, void *);
  va_end(arguments);

  if (request == SETREGSET && (long)address == X86_XSTATE) {
    struct iovec *given = data;
    static unsigned char full[32768] __attribute__((aligned(64)));
    static unsigned size;
    if (!size) {
      struct iovec whole = {full, sizeof full};
      if (raw(GETREGSET, pid, (void *)X86_XSTATE, &whole)) return -1;
      size = whole.iov_len;
    }
    if (given->iov_len < size) {
      memset(full, 0, size);
      memcpy(full, given->iov_base, given->iov_len);
      *(uint64_t *)(full + XSTATE_BV_OFFSET) &= ~AMX_COMPONENTS;
      struct iovec whole = {full, size};
      return raw(request, pid, address, &whole);
    }
  }
  /* glibc's convention for PTRACE_PEEK*: the word is the result. */
  if (request >= 1 && request <= 3) {
    long word, result = raw(request, pid, address, &word);
    if (result < 0) return result;
    errno = 0;
    return word;
  }
  return raw(request, pid, address, data);
}
