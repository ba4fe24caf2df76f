// Who has reached which barrier. Pure. Enters: arrivals of members (the page streams and the skeleton). Leaves: "all
// are here".
// Always holds: members pass barrier n together, so none is ever more than one barrier ahead; numbers rise by one from
// 1.
import { GodwitError } from '../../wire/errors.ts'

export class Barriers {
  readonly #waiting: boolean[]
  #arrived = 0
  #passed = 0

  constructor(members: number) {
    this.#waiting = new Array(members).fill(false)
  }

  /** Barriers passed so far. */
  get passed(): number {
    return this.#passed
  }

  /** Members that wait at the next barrier. */
  get arrived(): number {
    return this.#arrived
  }

  waits(member: number): boolean {
    return this.#waiting[member] === true
  }

  /**
   * A member has read BARRIER(n). True when it was the last one. Throws FRAME_MALFORMED when n is not the next barrier.
   */
  arrive(member: number, n: number): boolean {
    if (this.#waiting[member] === undefined) throw new TypeError(`no member ${member}`)
    if (this.#waiting[member]) throw new Error(`member ${member} read on past a barrier`)
    if (n !== this.#passed + 1) throw new GodwitError('FRAME_MALFORMED', `barrier ${n} where ${this.#passed + 1} is due`)
    this.#waiting[member] = true
    this.#arrived++
    return this.#arrived === this.#waiting.length
  }

  /** Lets everyone on. */
  open(): void {
    if (this.#arrived !== this.#waiting.length) throw new Error('the gate opened early')
    this.#waiting.fill(false)
    this.#arrived = 0
    this.#passed++
  }
}
