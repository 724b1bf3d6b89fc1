/**
 * A disk that a PC boots from. Each time it reads a text, counts one up on the disk, and says both on the
 * first serial port:
 *
 *     sector 0    the program below
 *     sector 1    the text, up to a zero byte
 *     sector 8    a digit and CR LF 0: how often this disk has booted
 *
 *     7C00  31 C0              xor  ax, ax
 *     7C02  8E D8              mov  ds, ax
 *     7C04  8E C0              mov  es, ax
 *     7C06  8E D0              mov  ss, ax
 *     7C08  BC 00 7C           mov  sp, 7C00h
 *     7C0B  BE 46 7C           mov  si, 7C46h          the text: read, of the drive in DL, as the BIOS left it
 *     7C0E  B4 42              mov  ah, 42h
 *     7C10  CD 13              int  13h
 *     7C12  72 23              jc   7C37h
 *     7C14  BE 56 7C           mov  si, 7C56h          the digit: read
 *     7C17  B4 42              mov  ah, 42h
 *     7C19  CD 13              int  13h
 *     7C1B  72 1A              jc   7C37h
 *     7C1D  FE 06 00 82        inc  byte [8200h]
 *     7C21  BE 56 7C           mov  si, 7C56h          the digit: write
 *     7C24  B8 00 43           mov  ax, 4300h
 *     7C27  CD 13              int  13h
 *     7C29  72 0C              jc   7C37h
 *     7C2B  BE 00 80           mov  si, 8000h
 *     7C2E  E8 09 00           call 7C3Ah
 *     7C31  BE 00 82           mov  si, 8200h
 *     7C34  E8 03 00           call 7C3Ah
 *     7C37  F4                 hlt
 *     7C38  EB FD              jmp  7C37h
 *     7C3A  AC                 lodsb                   prints what SI points to
 *     7C3B  84 C0              test al, al
 *     7C3D  74 06              jz   7C45h
 *     7C3F  BA F8 03           mov  dx, 3F8h
 *     7C42  EE                 out  dx, al
 *     7C43  EB F5              jmp  7C3Ah
 *     7C45  C3                 ret
 *     7C46  10 00 01 00 00 80 00 00 01 00 00 00 00 00 00 00     one sector to 0000:8000, from sector 1
 *     7C56  10 00 01 00 00 82 00 00 08 00 00 00 00 00 00 00     one sector to 0000:8200, from sector 8
 */
const PROGRAM = `
  31C0 8ED8 8EC0 8ED0 BC007C
  BE467C B442 CD13 7223
  BE567C B442 CD13 721A
  FE060082
  BE567C B80043 CD13 720C
  BE0080 E80900 BE0082 E80300
  F4 EBFD
  AC 84C0 7406 BAF803 EE EBF5 C3
  10000100008000000100000000000000
  10000100008200000800000000000000`;

const SECTOR_BYTES = 512;

/** The first 8 KiB of such a disk; the rest may be anything. `text` is ASCII, shorter than a sector. */
export function bootDisk(text: string): Buffer {
  const disk = Buffer.alloc(16 * SECTOR_BYTES);
  Buffer.from(PROGRAM.replace(/\s/g, ''), 'hex').copy(disk);
  disk.writeUInt16LE(0xaa55, SECTOR_BYTES - 2);
  disk.write(`${text}\0`, SECTOR_BYTES, 'ascii');
  disk.write('0\r\n\0', 8 * SECTOR_BYTES, 'ascii');
  return disk;
}

/** QEMU as a PC without anything but that disk and a serial port on its standard output; by emulation. */
export function qemuCommand(drive: string): [string, ...string[]] {
  return [
    'qemu-system-x86_64',
    ...['-M', 'pc', '-accel', 'tcg', '-m', '16', '-nodefaults', '-display', 'none'],
    ...['-serial', 'stdio', '-drive', drive],
  ];
}
