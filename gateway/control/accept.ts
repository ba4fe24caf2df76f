// From a fresh connection to a served site: first frame, authentication, registration, RPC, relay streams.
// Enters: connections of strangers. Leaves: registered sites; enrolment answers; closed connections.
// Always holds: a stranger has a few seconds and one stream; strangers at once are bounded, in all and from one address; nothing of a stranger is stored but an enrolment
// request behind a valid token; every refusal tells its code, is counted, and closes the connection.
import { sleep, within } from '../../ops/deadline.ts'
import type { Admission } from '../../transport/admission.ts'
import { createFrameStream, type FrameStream } from '../../transport/frames.ts'
import { createRpc, type RpcPeer } from '../../transport/rpc.ts'
import type { Connection, Listener, Stream } from '../../transport/types.ts'
import { answerWarmUp } from '../../transport/warm-up.ts'
import { Enrol, type EnrolReply, Join, MigrationProgress, MigrationResult, SiteState, type Welcome } from '../../wire/control.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { check, checkJson, toJson } from '../../wire/schema.ts'
import { allow, FRAME } from '../../wire/types.ts'
import { type Authority, authenticateNode, type Peer } from './authenticate.ts'
import type { SiteLink, Sites } from './sites.ts'

const STRANGER_MS = 10_000
const GOODBYE_MS = 1_000
const WARM_UP_MS = 20_000
/** Streams that one connection of a site may have open, joined or not yet. */
export const STREAMS_MAX = 1024

export type AcceptOptions = {
  authority: Authority
  gatewayId: string
  version: string
  sites: Sites
  enrol(enrol: Enrol): Promise<EnrolReply>
  /** `first`: over this connection. */
  onState(link: SiteLink, state: SiteState, first: boolean): void
  onProgress(link: SiteLink, progress: MigrationProgress): void
  onResult(link: SiteLink, result: MigrationResult): Promise<void>
  onJoin(join: Join, site: string, stream: Stream): Promise<void>
  onRefused(code: string): void
  /** Connections that have proved nothing yet, over all listeners. */
  strangers: Admission
  /** Streams that warm a connection up, over all sites: after a restart all sites come back at once. */
  warmUps: Admission
  heartbeat?: { heartbeatMs: number; silenceMs: number } | undefined
  log: Log
}

/** Serves a listener until it closes. */
export async function acceptConnections(listener: Listener, options: AcceptOptions): Promise<void> {
  for (;;) {
    const connection = await listener.accept()
    if (connection === null) return
    const becomeKnown = options.strangers.enter(connection.remoteAddress)
    if (!becomeKnown) {
      options.onRefused('LIMIT_EXCEEDED')
      connection.close('too many connections').catch(() => {})
      continue
    }
    serveConnection(connection, options, becomeKnown)
      .catch(error => options.log.error('serving a connection failed', { error }))
      .finally(() => {
        becomeKnown()
        connection.close('served').catch(() => {})
      })
  }
}

async function serveConnection(connection: Connection, options: AcceptOptions, becomeKnown: () => void): Promise<void> {
  let frames: FrameStream | undefined
  try {
    const greeting = greet(connection, options, opened => {
      frames = opened
    })
    const peer = await within(greeting, { ms: STRANGER_MS, what: 'authentication' })
    becomeKnown()
    if (peer && frames) await serveSite(peer, connection, frames, options)
  } catch (thrown) {
    const error = toGodwitError(thrown)
    options.log.warn('a connection was refused', { from: connection.remoteAddress, engine: connection.engine, error })
    options.onRefused(error.code)
    await refuse(frames, connection, error)
  }
}

/** Authenticates a node, or answers an enrolment (undefined). */
async function greet(connection: Connection, options: AcceptOptions, onOpened: (frames: FrameStream) => void): Promise<Peer | undefined> {
  const stream = await connection.acceptStream()
  if (stream === null) return undefined
  const frames = createFrameStream(stream)
  onOpened(frames)
  const first = await frames.next(allow('HELLO', 'ENROL'))
  if (first === null) throw new GodwitError('FRAME_TRUNCATED', 'a stream without a first frame')
  if (first.type === FRAME.HELLO) return authenticateNode(first, frames, connection.binding, options.authority)
  const reply = await options.enrol(checkJson(Enrol, first.payload, { what: 'ENROL frame' }))
  await frames.write(FRAME.ENROL_REPLY, toJson(reply))
  await frames.stream.end()
  await goodbye(connection)
  return undefined
}

/** Registers an authenticated site and serves it until its link ends. */
async function serveSite(peer: Peer, connection: Connection, frames: FrameStream, options: AcceptOptions): Promise<void> {
  const { sites, onJoin, onRefused, gatewayId, version } = options
  const site = peer.certificate.id
  const { purpose } = peer.hello
  const log = options.log.child({ site, purpose })
  const link: SiteLink = {
    site,
    peer,
    connection,
    rpc: createSiteRpc(() => link, frames, peer, options),
    since: options.authority.clock.now(),
  }
  try {
    sites.attach(link)
  } catch (error) {
    link.rpc.close(toGodwitError(error))
    throw error
  }
  const serveStream = async (stream: Stream, from: string) => {
    const { join, rest } = await readFirst(stream)
    await (join ? onJoin(join, site, rest) : warmUp(rest, from, options.warmUps))
  }
  try {
    const welcome: Welcome = { gateway: gatewayId, site, version }
    await within(frames.write(FRAME.WELCOME, toJson(welcome)), { ms: STRANGER_MS, what: 'WELCOME' })
    log.info('a site has connected', { engine: connection.engine, from: connection.remoteAddress })
    acceptStreams(connection, stream => serveStream(stream, connection.remoteAddress), onRefused).catch(() => {})
    const why = await Promise.race([link.rpc.closed, connection.closed.then(({ message }) => new GodwitError('CONNECTION_LOST', message))])
    log.info('a site has gone', { why: why?.message ?? 'closed' })
  } finally {
    sites.detach(link)
    link.rpc.close()
    // Time for a last ERROR frame to be read.
    await goodbye(connection)
  }
}

function createSiteRpc(linkOf: () => SiteLink, frames: FrameStream, { certificate, hello }: Peer, options: AcceptOptions): RpcPeer {
  const site = certificate.id
  const control = hello.purpose === 'control'
  let told = false
  const handlers = {
    'site.state': async (params: unknown) => {
      const state = check(SiteState, params, { what: 'site.state' })
      if (state.site !== site) throw new GodwitError('AUTH_FAILED', `site ${site} speaks for site ${state.site}`)
      if (!options.sites.update(linkOf(), state)) throw new GodwitError('CONNECTION_LOST', 'this link has been replaced')
      const first = !told
      told = true
      options.onState(linkOf(), state, first)
    },
    'migration.result': async (params: unknown) => options.onResult(linkOf(), check(MigrationResult, params, { what: 'migration.result' })),
  }
  return createRpc(frames, {
    handlers: control ? handlers : {},
    onNotify(method, params) {
      if (control && method === 'migration.progress') options.onProgress(linkOf(), check(MigrationProgress, params, { what: method }))
    },
    log: options.log.child({ site }),
    ...options.heartbeat,
  })
}

async function acceptStreams(
  connection: Connection,
  serve: (stream: Stream) => Promise<void>,
  onRefused: (code: string) => void,
): Promise<void> {
  let open = 0
  for (;;) {
    const stream = await connection.acceptStream()
    if (stream === null) return
    if (open >= STREAMS_MAX) {
      onRefused('LIMIT_EXCEEDED')
      stream.reset('too many streams')
      continue
    }
    open += 1
    serve(stream)
      .catch(thrown => {
        const { code } = toGodwitError(thrown)
        onRefused(code)
        stream.reset(code)
      })
      .finally(() => {
        open -= 1
      })
  }
}

/** `join` is absent where the stream only warms the connection up. */
async function readFirst(stream: Stream): Promise<{ join?: Join; rest: Stream }> {
  const frames = createFrameStream(stream)
  const frame = await within(frames.next(allow('JOIN', 'WARM_UP')), { ms: STRANGER_MS, what: 'the first frame of a stream' })
  if (frame === null) throw new GodwitError('FRAME_TRUNCATED', 'a stream without a first frame')
  if (frame.type === FRAME.WARM_UP) return { rest: frames.rest() }
  return { join: checkJson(Join, frame.payload, { what: 'JOIN frame' }), rest: frames.rest() }
}

/** No place for it is no fault of the site's: it does without. */
async function warmUp(stream: Stream, from: string, warmUps: Admission): Promise<void> {
  const leave = warmUps.enter(from)
  if (!leave) return stream.reset('too many warm up')
  try {
    await within(answerWarmUp(stream), { ms: WARM_UP_MS, what: 'a warm-up' })
  } catch {
    stream.reset('no warm-up')
  } finally {
    leave()
  }
}

/** Tells why, and gives the peer a moment to read it. */
async function refuse(frames: FrameStream | undefined, connection: Connection, error: GodwitError): Promise<void> {
  if (!frames) return
  const told = frames.write(FRAME.ERROR, toJson(error)).then(() => frames.stream.end())
  await within(told, { ms: GOODBYE_MS, what: 'a refusal' }).catch(() => {})
  await goodbye(connection)
}

const goodbye = (connection: Connection): Promise<unknown> => Promise.race([connection.closed, sleep(GOODBYE_MS)])
