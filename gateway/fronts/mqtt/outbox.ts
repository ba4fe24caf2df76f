// What is to be said to the broker, and what stands there. Pure: no clock, no network.
// Enters: messages. Leaves: the next one to publish; after the broker's return all retained ones again.
// Always holds: of a retained topic only the latest text is kept; of a fleeting one (QoS 0) as well, and only while the
// broker is there; what must arrive once (replies, results) waits in order, bounded, the oldest goes first; nothing
// here ever waits for the broker.
import type { MqttMessage } from '../../../mqtt/message.ts'

type DropReason = 'full' | 'stale' | 'offline' | 'refused'

export const MESSAGES_WAITING_MAX = 2_000
const RETAINED_MAX = 200_000

export class MqttOutbox {
  /** What the broker shall have. */
  readonly #retained = new Map<string, MqttMessage>()
  /** Retained topics whose latest text it has not got yet. */
  readonly #dirty = new Set<string>()
  readonly #waiting: MqttMessage[] = []
  readonly #fleeting = new Map<string, MqttMessage>()
  readonly #onDropped: (reason: DropReason) => void

  constructor(onDropped: (reason: DropReason) => void = () => {}) {
    this.#onDropped = onDropped
  }

  /** `up`: whether the broker is there. False when nothing changed: the same text stands already. */
  put(message: MqttMessage, up: boolean): boolean {
    if (message.retained) {
      const before = this.#retained.get(message.topic)
      if (before?.payload === message.payload) return false
      if (!before && this.#retained.size >= RETAINED_MAX) {
        this.#onDropped('full')
        return false
      }
      this.#retained.set(message.topic, message)
      this.#dirty.add(message.topic)
      return true
    }
    if (message.qos === 0) {
      if (up) this.#fleeting.set(message.topic, message)
      else this.#onDropped('offline')
      return up
    }
    this.#waiting.push(message)
    if (this.#waiting.length > MESSAGES_WAITING_MAX) {
      this.#waiting.shift()
      this.#onDropped('full')
    }
    return true
  }

  /** Takes a retained topic away, whoever put it there. */
  clear(topic: string): void {
    this.#retained.set(topic, { topic, payload: '', qos: 1, retained: true })
    this.#dirty.add(topic)
  }

  /** The broker may have lost everything: all that stands is to be said again. */
  replay(): void {
    for (const topic of this.#retained.keys()) this.#dirty.add(topic)
  }

  /** The broker has gone: what is fleeting has flown. */
  offline(): void {
    this.#fleeting.clear()
  }

  next(nowMs: number): MqttMessage | undefined {
    for (const topic of this.#dirty) {
      this.#dirty.delete(topic)
      const message = this.#retained.get(topic)
      if (message) return message
    }
    for (let message = this.#waiting.shift(); message; message = this.#waiting.shift()) {
      if (message.staleAtMs === undefined || message.staleAtMs > nowMs) return message
      this.#onDropped('stale')
    }
    for (const [topic, message] of this.#fleeting) {
      this.#fleeting.delete(topic)
      return message
    }
    return undefined
  }

  /** It has arrived. */
  sent(message: MqttMessage): void {
    if (message.retained && message.payload === '' && this.#retained.get(message.topic) === message && !this.#dirty.has(message.topic))
      this.#retained.delete(message.topic)
  }

  /** The broker does not want it, and will not the next time. */
  refused(): void {
    this.#onDropped('refused')
  }

  /** It has not arrived, and the connection with it is gone. */
  failed(message: MqttMessage): void {
    if (message.retained) this.#dirty.add(message.topic)
    else if (message.qos === 1) this.#waiting.unshift(message)
  }

  get size(): { retained: number; waiting: number; dirty: number } {
    return { retained: this.#retained.size, waiting: this.#waiting.length, dirty: this.#dirty.size }
  }
}
