// The copies of images that this site sends. Enters: wishes of an operator or of a migration. Leaves: the image at the
// other site, or a coded error; how far each copy is.
// Always holds: one copy of an image to a site at a time, whoever wants it; a lost link, gateway or target is waited
// for as long as PATIENCE_MS pass without a new chunk at the target, and then only what is missing is sent; each
// attempt checks the target's certificate and has keys of its own.
import type { LoadedIdentity } from '../../identity/load.ts'
import { type VerifiedSite, verifySite } from '../../identity/peer.ts'
import type { Trust } from '../../identity/trust.ts'
import { raceAbort, sleep } from '../../ops/deadline.ts'
import type { Stream } from '../../transport/types.ts'
import { ImageCopyResult, type ImagePlan } from '../../wire/control.ts'
import { type ErrorCode, GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { ImageCopyView } from '../../wire/node-api.ts'
import { CONTROL, indexOf } from '../../wire/roles.ts'
import { checkVersion, VERSIONS } from '../../wire/versions.ts'
import { openChannel } from '../channel/channel.ts'
import { createImageLeaves } from '../disks/image-leaves.ts'
import type { Images } from '../disks/images.ts'
import type { Link } from '../link/link.ts'
import { IMAGE_BYTES_MAX, sessionPlanOf } from './messages.ts'
import { sendImage } from './send.ts'
import { createTalk } from './talk.ts'

const RUNNING_MAX = 8
const ENDED_MAX = 32
const PATIENCE_MS = 10 * 60_000
const RETRY_MS = 1_000
const RETRY_MAX_MS = 15_000
/** How long the word that this site gives up may take. */
const LAST_WORD_MS = 500

/** What may be over at the next attempt. IMAGE_BUSY: another site sends it just now. */
const PASSING: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'CONNECTION_LOST',
  'STREAM_RESET',
  'TIMEOUT',
  'SITE_OFFLINE',
  'GATEWAY_UNREACHABLE',
  'IMAGE_BUSY',
])

type OutgoingOptions = {
  site: string
  identity: LoadedIdentity
  trust: Trust
  images: Images
  link: () => Link
  onBreach: (error: GodwitError) => void
  log: Log
}

type Progress = Pick<ImageCopyView, 'bytesDone' | 'bytesTotal' | 'rateBytesPerSecond' | 'etaMs'>
type Job = {
  image: string
  to: string
  progress: Progress
  stop: AbortController
  done: Promise<void>
  listeners: Set<(progress: Progress) => void>
  peer?: VerifiedSite
}

export class OutgoingCopies {
  readonly #options: OutgoingOptions
  readonly #leaves = createImageLeaves()
  readonly #jobs = new Map<string, Job>()
  /** The last ones that have ended, by the same key. */
  readonly #ended = new Map<string, ImageCopyView>()
  readonly #unwatch: () => void

  constructor(options: OutgoingOptions) {
    this.#options = options
    this.#unwatch = options.trust.watch(() => this.#endUntrusted())
  }

  /** Begins a copy, or gives the one that runs. LIMIT_EXCEEDED; what goes wrong later is shown. */
  begin(image: string, to: string): ImageCopyView {
    return viewOf(this.#jobs.get(keyOf(image, to)) ?? this.#start(image, to))
  }

  /** IMAGE_UNKNOWN when there is none. */
  show(image: string, to: string): ImageCopyView {
    const key = keyOf(image, to)
    const job = this.#jobs.get(key)
    const view = job ? viewOf(job) : this.#ended.get(key)
    if (!view) throw new GodwitError('IMAGE_UNKNOWN', `no copy of image ${image} to ${to} was started here`)
    return view
  }

  /** Ends a copy; what has come stays at the other site for a later one. IMAGE_UNKNOWN. */
  async cancel(image: string, to: string): Promise<void> {
    const job = this.#jobs.get(keyOf(image, to))
    if (!job) throw new GodwitError('IMAGE_UNKNOWN', `no copy of image ${image} to ${to} runs here`)
    job.stop.abort(new GodwitError('IMAGE_CANCELLED', `the copy of ${image} to ${to} was cancelled`))
    await job.done.catch(() => {})
  }

  /**
   * The image is at the other site. A copy that runs is joined, and goes on when the signal ends the waiting. The
   * copy's error; the signal's reason.
   */
  async ensure(image: string, to: string, { signal, onProgress }: { signal: AbortSignal; onProgress: (progress: Progress) => void }) {
    const job = this.#jobs.get(keyOf(image, to)) ?? this.#start(image, to)
    job.listeners.add(onProgress)
    const left = Promise.withResolvers<never>()
    const leave = () => left.reject(signal.reason)
    signal.addEventListener('abort', leave, { once: true })
    try {
      await Promise.race([job.done, left.promise])
    } finally {
      signal.removeEventListener('abort', leave)
      job.listeners.delete(onProgress)
    }
  }

  async close(): Promise<void> {
    this.#unwatch()
    const jobs = [...this.#jobs.values()]
    for (const { stop } of jobs) stop.abort(new GodwitError('SITE_OFFLINE', 'the node is shutting down'))
    await Promise.allSettled(jobs.map(({ done }) => done))
  }

  #start(image: string, to: string): Job {
    const { log } = this.#options
    if (this.#jobs.size >= RUNNING_MAX) throw new GodwitError('LIMIT_EXCEEDED', `${RUNNING_MAX} copies of images already run at this site`)
    const key = keyOf(image, to)
    const job: Job = { image, to, progress: { bytesDone: 0 }, stop: new AbortController(), done: Promise.resolve(), listeners: new Set() }
    this.#jobs.set(key, job)
    this.#ended.delete(key)
    const end = (view: Pick<ImageCopyView, 'state' | 'error'>) => {
      this.#jobs.delete(key)
      this.#ended.set(key, { ...viewOf(job), ...view })
      for (const oldest of this.#ended.keys()) if (this.#ended.size > ENDED_MAX) this.#ended.delete(oldest)
    }
    job.done = this.#run(job).then(
      () => {
        log.info('image copied', { image, to, bytes: job.progress.bytesDone })
        end({ state: 'copied' })
      },
      thrown => {
        const error = toGodwitError(thrown)
        log.warn('image copy failed', { image, to, error })
        end({ state: 'failed', error: error.toJSON() })
        throw error
      },
    )
    job.done.catch(() => {})
    return job
  }

  /** Attempts, until one gets through or nothing moves any more. */
  async #run(job: Job): Promise<void> {
    const { signal } = job.stop
    let movedAtMs = performance.now()
    const onProgress = (progress: Progress) => {
      if (progress.bytesDone > job.progress.bytesDone) movedAtMs = performance.now()
      job.progress = progress
      for (const listener of job.listeners) listener(progress)
    }
    for (let attempt = 0; ; attempt++) {
      try {
        return await raceAbort(this.#attempt(job, onProgress), signal)
      } catch (thrown) {
        signal.throwIfAborted()
        const error = toGodwitError(thrown)
        if (!PASSING.has(error.code) || performance.now() - movedAtMs > PATIENCE_MS) throw error
        this.#options.log.info('image copy is interrupted', { image: job.image, to: job.to, attempt, error })
        await sleep(Math.min(RETRY_MAX_MS, RETRY_MS * 2 ** Math.min(attempt, 6)), signal)
      }
    }
  }

  async #attempt(job: Job, onProgress: (progress: Progress) => void): Promise<void> {
    const { images, identity, onBreach, log } = this.#options
    const { signal } = job.stop
    const { path, root, sizeBytes } = await images.use(job.image, signal)
    if (sizeBytes > IMAGE_BYTES_MAX) throw new GodwitError('LIMIT_EXCEEDED', `an image of more than ${IMAGE_BYTES_MAX} bytes is not copied`)
    const { name, source, sourceFormat, sourceSha256 } = await images.show(job.image)
    const leaves = await this.#leaves.of({ path, root }, sizeBytes, signal)
    const { plan, target } = await this.#agree(job)
    job.peer = target
    const opened: Stream[] = []
    const openStream = async (index: number) => {
      const stream = await this.#options.link().openRelayStream({ sessionId: plan.migrationId, index, attempt: 1 })
      opened.push(stream)
      return stream
    }
    try {
      const stream = await openStream(indexOf(CONTROL))
      const sides = {
        sourceCertificate: identity.certificate,
        targetCertificate: target.bytes,
        peerBoxPublic: target.certificate.boxPublic,
      }
      const channel = await openChannel({ side: 'source', stream, plan: sessionPlanOf(plan), keys: identity.keys, ...sides, onBreach })
      const talk = createTalk(channel, { onHave: createRates(onProgress), signal })
      const image = { name, root, sizeBytes, source, sourceFormat, sourceSha256 }
      try {
        await sendImage({ plan, channel, talk, path, image, leaves, openStream, signal, log })
      } catch (error) {
        const told = talk.send({ type: 'REFUSE', error: toGodwitError(error).toJSON() }).catch(() => {})
        await Promise.race([told, sleep(LAST_WORD_MS)])
        throw error
      }
      await channel.finish()
    } catch (error) {
      for (const each of opened) each.reset('the copy has ended')
      throw error
    }
  }

  /** A session at the gateway, and a target that we trust. */
  async #agree({ to, stop: { signal } }: Job): Promise<{ plan: ImagePlan; target: VerifiedSite }> {
    const { site, trust, link } = this.#options
    const answer = ImageCopyResult.parse(await link().request('image.copy', { target: to }, { signal }))
    const { plan, targetCertificate } = answer
    checkVersion('migration', { by: 'the gateway', version: plan.version }, { name: `site ${site}`, range: VERSIONS.migration })
    if (plan.source !== site || plan.target !== to)
      throw new GodwitError('MIGRATION_STATE', `the gateway's plan is from ${plan.source} to ${plan.target}`)
    return { plan, target: await verifySite(trust, to, targetCertificate) }
  }

  #endUntrusted(): void {
    for (const { peer, to, stop } of this.#jobs.values()) {
      try {
        if (peer) this.#options.trust.verify(peer.bytes, { role: 'site', id: to })
      } catch (error) {
        stop.abort(toGodwitError(error))
      }
    }
  }
}

const keyOf = (image: string, to: string): string => `${image} ${to}`
const viewOf = ({ image, to, progress }: Job): ImageCopyView => ({ image, to, state: 'copying', ...progress })

/** Rate and end from what the other site has had since the first word of it. */
function createRates(onProgress: (progress: Progress) => void) {
  let first: { atMs: number; bytes: number } | undefined
  return ({ bytesDone, bytesTotal }: { bytesDone: number; bytesTotal: number }) => {
    if (bytesTotal === 0) return
    const atMs = performance.now()
    first ??= { atMs, bytes: bytesDone }
    const bytes = bytesDone - first.bytes
    if (bytes === 0) return onProgress({ bytesDone, bytesTotal })
    const rate = (bytes * 1000) / (atMs - first.atMs)
    onProgress({ bytesDone, bytesTotal, rateBytesPerSecond: Math.round(rate), etaMs: Math.round(((bytesTotal - bytesDone) * 1000) / rate) })
  }
}
