// One service at its stable address: joins users' connections with the VM at its current site. The data between user
// and guest passes unchanged: Godwit does not encrypt it between user and VM, their own TLS must. Enters: TCP
// connections of users. Leaves: streams to sites, spliced. Always holds: a connection that arrives while the VM is
// between sites waits for a bounded time instead of failing, and the number of waiting connections is bounded; a user's
// data is sent to another site only if the first site stated that the guest has not received it; every end of a
// connection has a code.
import type { Socket } from 'node:net'
import { sleep, within } from '../../ops/deadline.ts'
import { createFrameStream } from '../../transport/frames.ts'
import { createSocketStream } from '../../transport/socket-stream.ts'
import type { Stream } from '../../transport/types.ts'
import type { ServiceView } from '../../wire/admin.ts'
import { ErrorBody } from '../../wire/control.ts'
import { type ErrorCode, fromBody, GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { Direction } from '../../wire/roles.ts'
import { checkJson, toJson } from '../../wire/schema.ts'
import { allow, FRAME } from '../../wire/types.ts'
import type { Home } from '../handoff/home.ts'
import { splice } from '../relay/splice.ts'
import { type HeldStream, holdFirst } from './held-stream.ts'
import { siteForUser } from './place.ts'

export const SERVICE_CONNECTIONS_MAX = 1024
/**
 * Limit for one address (an IPv6 /64): a proxy or a carrier's NAT has many users, but one user must not occupy all
 * slots.
 */
export const SERVICE_CONNECTIONS_PER_ADDRESS = 512
const SERVICE_WAITING_MAX = 256
const SERVICE_WAIT_MS = 5_000
const IDLE_MS = 10 * 60_000
const ASK_MS = 5_000
/**
 * A rejecting site is asked again after a change, or after this time, because its answer may be newer than its
 * site.state. Many waiting connections ask less often: at most ASKS_AT_ONCE requests to a site in this time.
 */
const RETRY_MS = 50
const ASKS_AT_ONCE = 8
/** Errors that may disappear shortly. */
const PASSING = new Set<ErrorCode>([
  'VM_UNKNOWN',
  'VM_STATE',
  'MIGRATION_BUSY',
  'SITE_OFFLINE',
  'CONNECTION_LOST',
  'STREAM_RESET',
  'CONNECT_FAILED',
  'TIMEOUT',
])

type ServiceOptions = {
  vm: string
  service: string
  /** Where the VM lives (homes.ts). */
  home(): Home
  /** Opens a stream to a site on its control connection: page streams of a migration fill the data connections. */
  openTo(site: string): Promise<Stream>
  /** Resolves at the next change of any site. */
  changed(): Promise<unknown>
  onEnded(outcome: string, waitedMs: number): void
  onBytes(direction: Direction, bytes: number): void
  waitMs?: number | undefined
  log: Log
}

export class Service {
  readonly #options: ServiceOptions
  readonly #over = new AbortController()
  #open = 0
  #waiting = 0
  readonly #counts = { connections: 0, refused: 0 }

  constructor(options: ServiceOptions) {
    this.#options = options
  }

  facts(): Pick<ServiceView, 'vm' | 'service' | 'site' | 'open' | 'waiting' | 'connections' | 'refused'> {
    const { vm, service, home } = this.#options
    return { vm, service, site: siteForUser(service, home()).site ?? null, open: this.#open, waiting: this.#waiting, ...this.#counts }
  }

  /** Serves one user's connection to its end. Never throws. */
  async serve(socket: Socket): Promise<void> {
    const { vm, service, onEnded, onBytes, log } = this.#options
    const user = holdFirst(createSocketStream(socket))
    const beganMs = performance.now()
    let waitedMs = 0
    this.#open += 1
    this.#counts.connections += 1
    try {
      const guest = await this.#reach(user)
      waitedMs = performance.now() - beganMs
      await splice(user, guest, {
        signal: this.#over.signal,
        idleMs: IDLE_MS,
        onChunk: (direction, { length }) => onBytes(direction, length),
      })
      onEnded('served', waitedMs)
    } catch (thrown) {
      const error = toGodwitError(thrown, 'STREAM_RESET')
      user.reset(error.code)
      if (waitedMs === 0) this.#counts.refused += 1
      onEnded(waitedMs === 0 ? error.code : 'cut', waitedMs)
      log.debug('service connection ended', { vm, service, error })
    } finally {
      this.#open -= 1
    }
  }

  close(why: GodwitError): void {
    this.#over.abort(why)
  }

  /** The guest's stream, as soon as a site provides it. */
  async #reach(user: HeldStream): Promise<Stream> {
    if (this.#open > SERVICE_CONNECTIONS_MAX)
      throw new GodwitError('LIMIT_EXCEEDED', `the service has more than ${SERVICE_CONNECTIONS_MAX} connections`)
    const { service, home, changed, waitMs = SERVICE_WAIT_MS } = this.#options
    const endMs = performance.now() + waitMs
    const gone = user.peek().then(() => new Promise<never>(() => {}))
    gone.catch(() => {})
    let isWaiting = false
    try {
      for (;;) {
        this.#over.signal.throwIfAborted()
        const change = changed()
        const place = siteForUser(service, home())
        const answer: Answer = place.site === undefined ? { error: place.error, isUnheard: true } : await this.#ask(place.site, user)
        if ('guest' in answer) return answer.guest
        const { error, isUnheard } = answer
        if (!isUnheard || !PASSING.has(error.code) || performance.now() >= endMs) throw error
        if (!isWaiting && this.#waiting >= SERVICE_WAITING_MAX)
          throw new GodwitError('LIMIT_EXCEEDED', `${SERVICE_WAITING_MAX} connections already wait for the VM`, { cause: error })
        this.#waiting += isWaiting ? 0 : 1
        isWaiting = true
        const retryMs = RETRY_MS * Math.ceil(this.#waiting / ASKS_AT_ONCE)
        await Promise.race([change, sleep(Math.min(retryMs, endMs - performance.now()), this.#over.signal), gone])
      }
    } finally {
      if (isWaiting) this.#waiting -= 1
    }
  }

  /**
   * The guest's stream after the site's acceptance, or the error. The user's first bytes are sent with the request, so
   * an acceptance needs no extra round trip.
   */
  async #ask(site: string, user: HeldStream): Promise<Answer> {
    const { vm, service } = this.#options
    let stream: Stream | undefined
    let early: Early | undefined
    let isRefused = false
    try {
      stream = await this.#streamTo(site)
      const frames = createFrameStream(stream)
      await within(frames.write(FRAME.SERVICE, toJson({ vm, service })), { ms: ASK_MS, what: `SERVICE to site ${site}` })
      early = sendEarly(user, stream)
      const frame = await within(frames.next(allow('SERVICE', 'ERROR')), { ms: ASK_MS, what: `site ${site}`, signal: this.#over.signal })
      if (frame === null) throw new GodwitError('STREAM_RESET', `site ${site} closed the stream without an answer`)
      isRefused = frame.type === FRAME.ERROR
      if (isRefused) throw fromBody(checkJson(ErrorBody, frame.payload, { what: 'ERROR frame' }))
      early.stop()
      if (await early.sent()) user.taken()
      return { guest: frames.rest() }
    } catch (thrown) {
      early?.stop()
      stream?.reset('not this way')
      return { error: toGodwitError(thrown, 'STREAM_RESET'), isUnheard: isRefused || !early?.hasBegun() }
    }
  }

  /** A stream to a site; a late one is reset. */
  async #streamTo(site: string): Promise<Stream> {
    const opening = this.#options.openTo(site)
    return await within(opening, { ms: ASK_MS, what: `a stream to site ${site}`, signal: this.#over.signal }).catch(error => {
      opening.then(late => late.reset('too late')).catch(() => {})
      throw error
    })
  }
}

/** `isUnheard`: the guest has certainly received no data of the user. */
type Answer = { guest: Stream } | { error: GodwitError; isUnheard: boolean }
type Early = { stop(): void; hasBegun(): boolean; sent(): Promise<boolean> }

/** Sends the user's first chunk when it arrives, unless stopped before. */
function sendEarly(user: HeldStream, stream: Stream): Early {
  let isStopped = false
  let sending: Promise<boolean> | undefined
  const send = (chunk: Uint8Array | null) => {
    if (isStopped || chunk === null) return
    sending = stream.write(chunk).then(() => true)
    sending.catch(() => {})
  }
  user.peek().then(send, () => {})
  return {
    stop() {
      isStopped = true
    },
    hasBegun: () => sending !== undefined,
    sent: async () => (await sending) ?? false,
  }
}
