// The last events of this gateway, for readers that come, come back, or are slow. Enters: events as JSON. Leaves: their
// text for a stream, from a given place on. Pure.
// Always holds: at most EVENTS_MAX events and BYTES_MAX characters, but always the newest; ids name the process and
// count from 1 without gaps, so that a reader gets each event after its resume point once and in order, or learns that
// some are missing.
import { formatEvent } from '../../ops/sse.ts'

const EVENTS_MAX = 4096
const BYTES_MAX = 4 * 1024 * 1024

export type RingLimits = { events: number; bytes: number }

export class EventRing {
  readonly #boot: string
  readonly #limits: RingLimits
  #texts: string[] = []
  /** Number of the first one in `texts`. */
  #first = 1
  #bytes = 0

  /** `boot`: 8 hexadecimal digits, others for each process. */
  constructor(boot: string, limits: RingLimits = { events: EVENTS_MAX, bytes: BYTES_MAX }) {
    this.#boot = boot
    this.#limits = limits
  }

  add(event: string, data: string): void {
    const text = formatEvent({ id: this.idOf(this.head + 1), event, data })
    this.#texts.push(text)
    this.#bytes += text.length
    let dropped = 0
    while (this.#texts.length - dropped > 1 && (this.#texts.length - dropped > this.#limits.events || this.#bytes > this.#limits.bytes)) {
      this.#bytes -= this.#texts[dropped]!.length
      dropped += 1
    }
    if (dropped === 0) return
    this.#texts.splice(0, dropped)
    this.#first += dropped
  }

  /** Number of the newest event; 0 before the first. */
  get head(): number {
    return this.#first + this.#texts.length - 1
  }

  idOf(number: number): string {
    return `${this.#boot}-${number}`
  }

  /** The place of a resume point; undefined when events after it are missing here, or it is not of this process. */
  placeOf(id: string): number | undefined {
    const [boot, digits = ''] = id.split('-')
    const number = /^[0-9]{1,15}$/.test(digits) ? Number(digits) : -1
    return boot === this.#boot && this.#has(number) ? number : undefined
  }

  /**
   * Events after a place, as text of at most `charactersMax` (but one event at least); undefined when some are missing.
   */
  read(place: number, charactersMax: number): { text: string; place: number } | undefined {
    if (!this.#has(place)) return undefined
    let text = ''
    let at = place
    while (at < this.head) {
      const next = this.#texts[at + 1 - this.#first]!
      if (text !== '' && text.length + next.length > charactersMax) break
      text += next
      at += 1
    }
    return { text, place: at }
  }

  #has(place: number): boolean {
    return place >= this.#first - 1 && place <= this.head
  }
}
