/**
 * Who may touch the medium: RESERVE(6) and RELEASE(6) of SPC-2, persistent reservations of SPC-4 section 5.9.
 * Both live as long as the unit does (no persistence through power loss, and reported so), persistent ones
 * across logins.
 *
 * Initiator ports are named as in SPC-4 section 7.6.4.6: `iqn…,i,0x` and the ISID in hexadecimal. There is
 * one target port.
 *
 * A decision comes back as a value; who gets which unit attention is part of it.
 */
export type ReservationType = 1 | 3 | 5 | 6 | 7 | 8;

export const RESERVATION_TYPE = {
  writeExclusive: 1,
  exclusiveAccess: 3,
  writeExclusiveRegistrantsOnly: 5,
  exclusiveAccessRegistrantsOnly: 6,
  writeExclusiveAllRegistrants: 7,
  exclusiveAccessAllRegistrants: 8,
} as const satisfies Record<string, ReservationType>;

/** Service actions of PERSISTENT RESERVE IN and OUT. */
export const IN_ACTION = {
  readKeys: 0,
  readReservation: 1,
  reportCapabilities: 2,
  readFullStatus: 3,
} as const;
export const OUT_ACTION = {
  register: 0,
  reserve: 1,
  release: 2,
  clear: 3,
  preempt: 4,
  preemptAndAbort: 5,
  registerAndIgnore: 6,
} as const;

/** What a command does to the medium, for the tables of SPC-4 section 5.9.2 and SBC-3 section 4.17. */
export type Access = 'none' | 'read' | 'write';

export type ReservationNotice = {
  port: string;
  attention: 'reservationsPreempted' | 'reservationsReleased' | 'registrationsPreempted';
};

export type ReservationOutcome =
  | { kind: 'good'; notices: ReservationNotice[]; abortTasksOf: string[] }
  | { kind: 'conflict' }
  | {
      kind: 'refused';
      sense:
        | 'invalidFieldInCdb'
        | 'invalidFieldInParameters'
        | 'parameterListLength'
        | 'invalidReleaseOfReservation'
        | 'insufficientRegistrationResources';
    };

export type ReserveOut = { action: number; scope: number; type: number };

/** An initiator can have as many ports as it likes; not so many registrations. */
const REGISTRATIONS_MAX = 256;
export const OUT_PARAMETERS_BYTES = 24;
const CONFLICT: ReservationOutcome = { kind: 'conflict' };

export class Reservations {
  readonly #keys = new Map<string, bigint>();
  #reservation: { type: ReservationType; holder: string } | null = null;
  #generation = 0;
  /** The port that holds the unit by RESERVE(6). */
  #reserved6: string | null = null;

  /** False: nobody can be refused anything, so that there is nothing to ask. */
  get active(): boolean {
    return this.#reservation !== null || this.#reserved6 !== null;
  }

  /** Whether a command of this port is to end in RESERVATION CONFLICT. */
  conflicts(port: string, access: Access): boolean {
    const reservation = this.#reservation;
    if (reservation === null || access === 'none') return false;
    if (this.#holds(port)) return false;
    if (reservation.type >= RESERVATION_TYPE.writeExclusiveRegistrantsOnly && this.#keys.has(port))
      return false;
    return access === 'write' || !isWriteExclusive(reservation.type);
  }

  /** RESERVE(6) keeps out everything but the few commands that the caller knows. */
  conflicts6(port: string): boolean {
    return this.#reserved6 !== null && this.#reserved6 !== port;
  }

  /** False: conflict. With registrations the old commands are not taken (no CRH, SPC-4 section 5.9.3). */
  reserve6(port: string): boolean {
    if (this.#keys.size > 0 || this.conflicts6(port)) return false;
    this.#reserved6 = port;
    return true;
  }

  /** False: conflict. A release of what somebody else holds does nothing. */
  release6(port: string): boolean {
    if (this.#keys.size > 0) return false;
    if (this.#reserved6 === port) this.#reserved6 = null;
    return true;
  }

  /** A port logged out or is lost: RESERVE(6) ends, registrations stay. */
  nexusLost(port: string): void {
    if (this.#reserved6 === port) this.#reserved6 = null;
  }

  /** The unit was reset. Persistent reservations stay. */
  reset(): void {
    this.#reserved6 = null;
  }

  /*
   * PERSISTENT RESERVE OUT parameter list, SPC-4 section 6.16.3
   *   0-7    RESERVATION KEY
   *   8-15   SERVICE ACTION RESERVATION KEY
   *   20     SPEC_I_PT(bit 3) ALL_TG_PT(bit 2) APTPL(bit 0), none of which is offered
   */
  out(port: string, command: ReserveOut, parameters: Buffer): ReservationOutcome {
    if (parameters.length !== OUT_PARAMETERS_BYTES) return refused('parameterListLength');
    const key = parameters.readBigUInt64BE(0);
    const actionKey = parameters.readBigUInt64BE(8);
    const registers =
      command.action === OUT_ACTION.register || command.action === OUT_ACTION.registerAndIgnore;
    if (registers) {
      if ((parameters[20]! & 0x0d) !== 0) return refused('invalidFieldInParameters');
      return this.#register(port, command.action === OUT_ACTION.register ? key : null, actionKey);
    }
    if (this.#keys.get(port) !== key) return CONFLICT;
    if (command.action === OUT_ACTION.clear) return this.#clear(port);
    if (command.scope !== 0 || !isType(command.type)) return refused('invalidFieldInCdb');
    switch (command.action) {
      case OUT_ACTION.reserve:
        return this.#reserve(port, command.type);
      case OUT_ACTION.release:
        return this.#release(port, command.type);
      case OUT_ACTION.preempt:
      case OUT_ACTION.preemptAndAbort: {
        const outcome = this.#preempt(port, command.type, actionKey);
        if (outcome.kind === 'good' && command.action === OUT_ACTION.preempt) outcome.abortTasksOf = [];
        return outcome;
      }
      default:
        return refused('invalidFieldInCdb');
    }
  }

  /** PERSISTENT RESERVE IN parameter data, SPC-4 section 6.15; null: no such service action. */
  in(action: number): Buffer | null {
    switch (action) {
      case IN_ACTION.readKeys: {
        // 0-3 PRGENERATION  4-7 length  8- keys
        const keys = [...this.#keys.values()].map((key) => bigEndian(key));
        return this.#framed(Buffer.concat(keys));
      }
      case IN_ACTION.readReservation: {
        // 0-3 PRGENERATION  4-7 length: 0 or 16  8-15 key of the holder (0: all registrants)  21 SCOPE(4) TYPE(4)
        if (this.#reservation === null) return this.#framed(Buffer.alloc(0));
        const { type, holder } = this.#reservation;
        const body = Buffer.alloc(16);
        if (!isAllRegistrants(type)) body.writeBigUInt64BE(this.#keys.get(holder)!, 0);
        body[13] = type;
        return this.#framed(body);
      }
      case IN_ACTION.reportCapabilities:
        // 0-1 length  2 CRH SIP_C ATP_C PTPL_C: none  3 TMV  4-5 types: 7 6 5 3 1, then 8
        return Buffer.from([0, 8, 0, 0x80, 0xea, 0x01, 0, 0]);
      case IN_ACTION.readFullStatus:
        return this.#framed(Buffer.concat([...this.#keys].map(([port, key]) => this.#fullStatus(port, key))));
      default:
        return null;
    }
  }

  /*
   * Full status descriptor, SPC-4 section 6.15.5
   *   0-7    key
   *   12     R_HOLDER(bit 0)
   *   13     SCOPE(4) TYPE(4)       of a holder
   *   18-19  relative target port: 1
   *   20-23  length of the TransportID
   *   24-    TransportID: 0x45 (iSCSI port name), 0, length(2), name with a zero, to a multiple of 4
   */
  #fullStatus(port: string, key: bigint): Buffer {
    const name = Buffer.alloc(Math.max(20, Math.ceil((port.length + 1) / 4) * 4));
    name.write(port, 'utf8');
    const descriptor = Buffer.alloc(28);
    descriptor.writeBigUInt64BE(key, 0);
    if (this.#reservation !== null && this.#holds(port)) {
      descriptor[12] = 0x01;
      descriptor[13] = this.#reservation.type;
    }
    descriptor.writeUInt16BE(1, 18);
    descriptor.writeUInt32BE(4 + name.length, 20);
    descriptor[24] = 0x45;
    descriptor.writeUInt16BE(name.length, 26);
    return Buffer.concat([descriptor, name]);
  }

  #framed(body: Buffer): Buffer {
    const head = Buffer.alloc(8);
    head.writeUInt32BE(this.#generation, 0);
    head.writeUInt32BE(body.length, 4);
    return Buffer.concat([head, body]);
  }

  #holds(port: string): boolean {
    const reservation = this.#reservation;
    if (reservation === null) return false;
    return isAllRegistrants(reservation.type) ? this.#keys.has(port) : reservation.holder === port;
  }

  /** `key` null: whatever the port is registered with. */
  #register(port: string, key: bigint | null, newKey: bigint): ReservationOutcome {
    const registered = this.#keys.get(port);
    if (key !== null && key !== (registered ?? 0n)) return CONFLICT;
    if (registered === undefined && newKey !== 0n && this.#keys.size >= REGISTRATIONS_MAX) {
      return refused('insufficientRegistrationResources');
    }
    const outcome = good();
    this.#nextGeneration();
    if (newKey !== 0n) {
      this.#keys.set(port, newKey);
      return outcome;
    }
    if (registered === undefined) return outcome;
    const reservation = this.#reservation;
    const held = this.#holds(port);
    this.#keys.delete(port);
    if (reservation === null || !held) return outcome;
    if (isAllRegistrants(reservation.type)) {
      if (this.#keys.size === 0) this.#reservation = null;
      return outcome;
    }
    this.#reservation = null;
    if (reservation.type >= RESERVATION_TYPE.writeExclusiveRegistrantsOnly) {
      this.#notify(outcome, this.#others(port), 'reservationsReleased');
    }
    return outcome;
  }

  #reserve(port: string, type: ReservationType): ReservationOutcome {
    if (this.#reservation === null) {
      this.#reservation = { type, holder: port };
      return good();
    }
    return this.#holds(port) && this.#reservation.type === type ? good() : CONFLICT;
  }

  #release(port: string, type: ReservationType): ReservationOutcome {
    const outcome = good();
    if (this.#reservation === null || !this.#holds(port)) return outcome;
    if (this.#reservation.type !== type) return refused('invalidReleaseOfReservation');
    this.#reservation = null;
    if (type >= RESERVATION_TYPE.writeExclusiveRegistrantsOnly) {
      this.#notify(outcome, this.#others(port), 'reservationsReleased');
    }
    return outcome;
  }

  #clear(port: string): ReservationOutcome {
    const outcome = good();
    this.#notify(outcome, this.#others(port), 'reservationsPreempted');
    this.#keys.clear();
    this.#reservation = null;
    this.#nextGeneration();
    return outcome;
  }

  /** SPC-4 section 5.9.11.4. `abortTasksOf` is for PREEMPT AND ABORT. */
  #preempt(port: string, type: ReservationType, victimKey: bigint): ReservationOutcome {
    const reservation = this.#reservation;
    const everybody = reservation !== null && isAllRegistrants(reservation.type) && victimKey === 0n;
    if (victimKey === 0n && !everybody) return refused('invalidFieldInParameters');
    const takesOver =
      everybody ||
      (reservation !== null &&
        !isAllRegistrants(reservation.type) &&
        this.#keys.get(reservation.holder) === victimKey);
    const victims = [...this.#keys]
      .filter(([, key]) => everybody || key === victimKey)
      .map(([name]) => name)
      // The one who takes the reservation over keeps its registration.
      .filter((name) => !(takesOver && name === port));
    if (victims.length === 0 && !takesOver) return CONFLICT;
    const outcome = good();
    for (const victim of victims) this.#keys.delete(victim);
    const others = victims.filter((victim) => victim !== port);
    this.#notify(outcome, others, 'registrationsPreempted');
    outcome.abortTasksOf = others;
    if (takesOver) {
      if (reservation!.type !== type) this.#notify(outcome, this.#others(port), 'reservationsReleased');
      this.#reservation = { type, holder: port };
    } else if (this.#keys.size === 0) {
      this.#reservation = null;
    }
    this.#nextGeneration();
    return outcome;
  }

  #others(port: string): string[] {
    return [...this.#keys.keys()].filter((name) => name !== port);
  }

  #notify(
    outcome: ReservationOutcome & { kind: 'good' },
    ports: string[],
    attention: ReservationNotice['attention'],
  ): void {
    for (const port of ports) outcome.notices.push({ port, attention });
  }

  #nextGeneration(): void {
    this.#generation = (this.#generation + 1) >>> 0;
  }
}

function isType(type: number): type is ReservationType {
  return (Object.values(RESERVATION_TYPE) as number[]).includes(type);
}
function isWriteExclusive(type: ReservationType): boolean {
  return type === 1 || type === 5 || type === 7;
}
function isAllRegistrants(type: ReservationType): boolean {
  return type >= RESERVATION_TYPE.writeExclusiveAllRegistrants;
}
function good(): ReservationOutcome & { kind: 'good' } {
  return { kind: 'good', notices: [], abortTasksOf: [] };
}
function refused(sense: (ReservationOutcome & { kind: 'refused' })['sense']): ReservationOutcome {
  return { kind: 'refused', sense };
}
function bigEndian(key: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(key, 0);
  return bytes;
}
