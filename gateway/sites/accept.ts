// From a new connection to a served site: first frame, authentication, registration, RPC, relay streams. Enters:
// unauthenticated connections. Leaves: registered sites; enrolment answers; closed connections. Always holds: an
// unauthenticated peer has a few seconds and one stream; their number is bounded, in total and from one address;
// nothing of them is stored except an enrolment request with a valid token; every rejection sends its code, is counted,
// and closes the connection.
import type { Certificate } from '../../crypto/certificate.ts'
import { sleep, within } from '../../ops/deadline.ts'
import type { Admission } from '../../transport/admission.ts'
import { createFrameStream, type FrameStream } from '../../transport/frames.ts'
import { createRpc, type RpcPeer } from '../../transport/rpc.ts'
import type { Connection, Listener, Stream } from '../../transport/types.ts'
import { answerWarmUp } from '../../transport/warm-up.ts'
import {
  type Enrol,
  type EnrolReply,
  ImageCopyParams,
  type ImageCopyResult,
  Join,
  MigrationProgress,
  MigrationResult,
  RenewParams,
  type RenewReply,
  SiteState,
  type Welcome,
} from '../../wire/control.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { check, checkJson, toJson } from '../../wire/schema.ts'
import { allow, FRAME } from '../../wire/types.ts'
import { type Authority, authenticateNode, type ConnectedNode } from './authenticate.ts'
import type { NodeLink, Sites } from './sites.ts'
import { enrolOf } from './stranger.ts'

const STRANGER_MS = 10_000
const GOODBYE_MS = 1_000
const WARM_UP_MS = 20_000
/** Limit of open streams of one connection of a site, joined or not yet. */
const CONNECTION_STREAMS_MAX = 1024

export type AcceptOptions = {
  authority: Authority
  gatewayId: string
  version: string
  sites: Sites
  enrol(enrol: Enrol): Promise<EnrolReply>
  /** A site requests its next certificate; `certificate` is the one of its link. */
  renew(certificate: Certificate, params: RenewParams): RenewReply
  /** A site wants to send an image to another. */
  copyImage(link: NodeLink, params: ImageCopyParams): Promise<ImageCopyResult>
  /** `first`: the first list over this connection. */
  onState(link: NodeLink, state: SiteState, first: boolean): void | Promise<void>
  onProgress(link: NodeLink, progress: MigrationProgress): void
  onResult(link: NodeLink, result: MigrationResult): Promise<void>
  onJoin(join: Join, site: string, stream: Stream): Promise<void>
  onRefused(code: string): void
  /** Unauthenticated connections of all listeners. */
  strangers: Admission
  /** Warm-up streams of all sites: after a restart all sites reconnect at once. */
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
      .catch(error => options.log.error('connection handler failed', { error }))
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
    if (peer) connection.trust?.()
    if (peer && frames) await serveSite(peer, connection, frames, options)
  } catch (thrown) {
    const error = toGodwitError(thrown)
    options.log.warn('connection rejected', { from: connection.remoteAddress, engine: connection.engine, error })
    options.onRefused(error.code)
    await refuse(frames, connection, error)
  }
}

/** Authenticates a node, or answers an enrolment (undefined). */
async function greet(
  connection: Connection,
  options: AcceptOptions,
  onOpened: (frames: FrameStream) => void,
): Promise<ConnectedNode | undefined> {
  const stream = await connection.acceptStream()
  if (stream === null) return undefined
  const frames = createFrameStream(stream)
  onOpened(frames)
  const first = await frames.next(allow('HELLO', 'ENROL_HELLO'))
  if (first === null) throw new GodwitError('FRAME_TRUNCATED', 'the stream ended before its first frame')
  if (first.type === FRAME.HELLO) return authenticateNode(first, frames, connection.binding, options.authority)
  const reply = await options.enrol(await enrolOf(first, frames, connection.binding, options.authority))
  await frames.write(FRAME.ENROL_REPLY, toJson(reply))
  await frames.stream.end()
  await goodbye(connection)
  return undefined
}

/** Registers an authenticated site and serves it until its link ends. */
async function serveSite(peer: ConnectedNode, connection: Connection, frames: FrameStream, options: AcceptOptions): Promise<void> {
  const { sites, onJoin, onRefused, gatewayId, version } = options
  const site = peer.certificate.id
  const { purpose } = peer.hello
  const log = options.log.child({ site, purpose })
  const link: NodeLink = {
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
    log.info('site connected', { engine: connection.engine, from: connection.remoteAddress })
    acceptStreams(connection, stream => serveStream(stream, connection.remoteAddress), onRefused).catch(() => {})
    const why = await Promise.race([link.rpc.closed, connection.closed.then(({ message }) => new GodwitError('CONNECTION_LOST', message))])
    log.info('site disconnected', { why: why?.message ?? 'closed' })
  } finally {
    sites.detach(link)
    link.rpc.close()
    // Time for the peer to read a last ERROR frame.
    await goodbye(connection)
  }
}

function createSiteRpc(
  linkOf: () => NodeLink,
  frames: FrameStream,
  { certificate, hello }: ConnectedNode,
  options: AcceptOptions,
): RpcPeer {
  const site = certificate.id
  const control = hello.purpose === 'control'
  let told = false
  const handlers = {
    'site.state': async (params: unknown) => {
      const state = check(SiteState, params, { what: 'site.state' })
      if (state.site !== site) throw new GodwitError('AUTH_FAILED', `site ${site} sent the state of site ${state.site}`)
      if (!options.sites.update(linkOf(), state)) throw new GodwitError('CONNECTION_LOST', 'a newer link replaced this one')
      const first = !told
      told = true
      await options.onState(linkOf(), state, first)
    },
    'trust.renew': async (params: unknown) => options.renew(certificate, check(RenewParams, params, { what: 'trust.renew' })),
    'image.copy': async (params: unknown) => options.copyImage(linkOf(), check(ImageCopyParams, params, { what: 'image.copy' })),
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
    if (open >= CONNECTION_STREAMS_MAX) {
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

/** `join` is absent for a warm-up stream. */
async function readFirst(stream: Stream): Promise<{ join?: Join; rest: Stream }> {
  const frames = createFrameStream(stream)
  const frame = await within(frames.next(allow('JOIN', 'WARM_UP')), { ms: STRANGER_MS, what: 'the first frame of a stream' })
  if (frame === null) throw new GodwitError('FRAME_TRUNCATED', 'the stream ended before its first frame')
  if (frame.type === FRAME.WARM_UP) return { rest: frames.rest() }
  return { join: checkJson(Join, frame.payload, { what: 'JOIN frame' }), rest: frames.rest() }
}

/** At the limit the warm-up is skipped: the site starts without it. */
async function warmUp(stream: Stream, from: string, warmUps: Admission): Promise<void> {
  const leave = warmUps.enter(from)
  if (!leave) return stream.reset('too many warm-ups are running')
  try {
    await within(answerWarmUp(stream), { ms: WARM_UP_MS, what: 'a warm-up' })
  } catch {
    stream.reset('the stream ended before its warm-up')
  } finally {
    leave()
  }
}

/** Sends the error, and gives the peer a moment to read it. */
async function refuse(frames: FrameStream | undefined, connection: Connection, error: GodwitError): Promise<void> {
  if (!frames) return
  const told = frames.write(FRAME.ERROR, toJson(error)).then(() => frames.stream.end())
  await within(told, { ms: GOODBYE_MS, what: 'a refusal' }).catch(() => {})
  await goodbye(connection)
}

const goodbye = (connection: Connection): Promise<unknown> => Promise.race([connection.closed, sleep(GOODBYE_MS)])
