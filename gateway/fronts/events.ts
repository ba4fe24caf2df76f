// The feed of events: one stream for each reader, out of one ring. Enters: the gateway's events, readers with the id
// they have read last. Leaves: server-sent events, comments that keep idle connections alive.
// Always holds: data flows one way, and the gateway never waits for a reader: a slow one costs one write, is behind in
// the ring meanwhile, and is disconnected when it takes nothing for STALL_MS; its last id is where it resumes. Readers
// are bounded, in all and from one address. A reader whose resume point is gone gets `reset` and goes on from now.
import type { StreamingAnswer, StreamOptions } from '../../ops/http-stream.ts'
import { isLoopback } from '../../ops/loopback.ts'
import { EVENT_STREAM, formatComment, formatEvent, formatRetry } from '../../ops/sse.ts'
import { createAdmission } from '../../transport/admission.ts'
import type { MigrationRecord } from '../../wire/admin.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { FeedEvent } from '../../wire/events.ts'
import type { Events } from '../handoff/events.ts'
import { EventRing, type RingLimits } from './event-ring.ts'
import { EventSource, type EventSourceOptions } from './event-source.ts'

export const READERS_MAX = 64
/** Of one address that is not this machine's: a proxy here speaks for many. */
export const READERS_PER_ADDRESS = 16
const KEEP_ALIVE_MS = 15_000
const STALL_MS = 30_000
const RETRY_MS = 2_000
/** Of one write: a reader that is far behind does not hold the ring's text twice. */
const WRITE_CHARACTERS_MAX = 64 * 1024

export type FeedOptions = Pick<EventSourceOptions, 'siteNow' | 'now'> & {
  events: Events
  sites: Iterable<string>
  migrations: Iterable<MigrationRecord>
  boot: string
  /** Tests only. */
  limits?: Partial<{ ring: RingLimits; keepAliveMs: number; stallMs: number }> | undefined
}
type Reader = {
  address: string
  /** The id that it has read last. */
  after: string | undefined
  signal: AbortSignal
  stream(options: StreamOptions): StreamingAnswer
}
export type EventFeed = {
  readonly readers: number
  /** Sends events until the reader goes or the server ends. LIMIT_EXCEEDED. */
  serve(reader: Reader): Promise<void>
  close(): void
}

export function createEventFeed({ events, sites, migrations, siteNow, now, boot, limits = {} }: FeedOptions): EventFeed {
  const { keepAliveMs = KEEP_ALIVE_MS, stallMs = STALL_MS } = limits
  const ring = new EventRing(boot, limits.ring)
  const readers = createReaders()
  const idle = new Set<() => void>()
  const publish = (event: FeedEvent) => {
    ring.add(event.event, JSON.stringify(event))
    for (const wake of idle) wake()
  }
  const source = new EventSource({ siteNow, now, publish }, { sites, migrations })
  let timer: NodeJS.Timeout | undefined
  const flush = () => {
    const nextMs = source.flush()
    timer = nextMs === undefined ? undefined : setTimeout(flush, nextMs).unref()
  }
  const unsubscribe = events.subscribe(event => {
    source.event(event)
    if (event.event === 'progress' && !timer) flush()
  })

  const send = async (answer: StreamingAnswer, { after, signal }: Reader): Promise<void> => {
    await answer.write(formatRetry(RETRY_MS))
    let place = after === undefined ? undefined : ring.placeOf(after)
    let why: 'start' | 'lost' = after === undefined ? 'start' : 'lost'
    while (!signal.aborted) {
      const found = place === undefined ? undefined : ring.read(place, WRITE_CHARACTERS_MAX)
      if (!found) {
        place = ring.head
        await answer.write(resetAt(ring, why, now()))
        why = 'lost'
      } else if (found.text !== '') {
        place = found.place
        await answer.write(found.text)
      } else if (!(await changed(idle, signal, keepAliveMs))) await answer.write(formatComment('keep-alive'))
    }
  }
  return {
    get readers() {
      return readers.count
    },
    async serve(reader) {
      const leave = readers.enter(reader.address)
      try {
        const headers = { 'x-accel-buffering': 'no' }
        await send(reader.stream({ contentType: EVENT_STREAM, headers, stallMs }), reader)
      } catch (error) {
        // It went away, or read too slowly: it comes back with the id that it has read last.
        if (!(error instanceof GodwitError)) throw error
      } finally {
        leave()
      }
    },
    close() {
      unsubscribe()
      clearTimeout(timer)
    },
  }
}

function createReaders() {
  const all = createAdmission({ total: READERS_MAX, perAddress: READERS_MAX })
  const others = createAdmission({ total: READERS_MAX, perAddress: READERS_PER_ADDRESS })
  return {
    get count() {
      return all.count
    },
    /** Gives what ends it. LIMIT_EXCEEDED. */
    enter(address: string): () => void {
      const leaveOthers = isLoopback(address) ? () => {} : others.enter(address)
      const leaveAll = leaveOthers && all.enter(address)
      if (leaveAll)
        return () => {
          leaveAll()
          leaveOthers()
        }
      leaveOthers?.()
      throw new GodwitError('LIMIT_EXCEEDED', `${READERS_MAX} readers of events, or ${READERS_PER_ADDRESS} from one address, are connected`)
    },
  }
}

function resetAt(ring: EventRing, why: 'start' | 'lost', at: number): string {
  const event: FeedEvent = { event: 'reset', at, why }
  return formatEvent({ id: ring.idOf(ring.head), event: event.event, data: JSON.stringify(event) })
}

/** Waits for the next event; false after `ms` without one. */
function changed(idle: Set<() => void>, signal: AbortSignal, ms: number): Promise<boolean> {
  return new Promise(resolve => {
    const settle = (isChanged: boolean) => {
      clearTimeout(timer)
      idle.delete(wake)
      signal.removeEventListener('abort', wake)
      resolve(isChanged)
    }
    const wake = () => settle(true)
    const timer = setTimeout(() => settle(false), ms)
    idle.add(wake)
    signal.addEventListener('abort', wake, { once: true })
  })
}
