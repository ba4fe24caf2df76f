// The images that other sites send to this one. Enters: plans from the gateway (trusted no further than certificates
// and the handshake reach), relay streams. Leaves: images of this site.
// Always holds: a source is one that the rules of this site let in; one copy of an image from a site at a time: a new
// attempt replaces the one before, which may not have noticed that its link is lost; RUNNING_MAX in all.
import type { LoadedIdentity } from '../../identity/load.ts'
import { type VerifiedSite, verifySite } from '../../identity/peer.ts'
import type { Trust } from '../../identity/trust.ts'
import { sleep, within } from '../../ops/deadline.ts'
import type { Stream } from '../../transport/types.ts'
import type { ImagePlan, ImagePrepareParams, Join } from '../../wire/control.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { isControl } from '../../wire/roles.ts'
import { openChannel } from '../channel/channel.ts'
import type { ImageProgress } from '../disks/image-source.ts'
import type { Images } from '../disks/images.ts'
import { sessionPlanOf } from './messages.ts'
import { receiveImage } from './receive.ts'
import { createTalk, type Talk } from './talk.ts'

const RUNNING_MAX = 16
const SOURCE_APPEARS_MS = 60_000
/** Time for the reason to arrive before the streams end. */
const LAST_WORD_MS = 500

type IncomingOptions = {
  site: string
  identity: LoadedIdentity
  trust: Trust
  images: Images
  /** Whether this site takes images from that one. MIGRATION_DENIED. */
  checkAccept: (source: string) => void
  /** How far an image is; undefined: it has ended. */
  onProgress: (name: string, progress: ImageProgress | undefined) => void
  onBreach: (error: GodwitError) => void
  log: Log
}

type Copy = {
  plan: ImagePlan
  source: VerifiedSite
  control: PromiseWithResolvers<Stream>
  /** Streams that nobody takes yet. */
  waiting: { index: number; stream: Stream }[]
  take: ((index: number, stream: Stream) => void) | undefined
  name?: string
  stop: AbortController
  ended: Promise<void>
}

export class IncomingCopies {
  readonly #options: IncomingOptions
  readonly #copies = new Map<string, Copy>()
  readonly #unwatch: () => void

  constructor(options: IncomingOptions) {
    this.#options = options
    this.#unwatch = options.trust.watch(() => this.#endUntrusted())
  }

  /** `image.prepare`: waits for the source of this plan. MIGRATION_STATE, MIGRATION_DENIED, LIMIT_EXCEEDED, CERT_*. */
  async prepare({ plan, sourceCertificate }: ImagePrepareParams): Promise<void> {
    const { site, trust, checkAccept } = this.#options
    if (plan.target !== site) throw new GodwitError('MIGRATION_STATE', `this is ${site}, not ${plan.target}`)
    const source = await verifySite(trust, plan.source, sourceCertificate)
    checkAccept(plan.source)
    if (this.#copies.has(plan.migrationId)) throw new GodwitError('MIGRATION_STATE', 'this copy already runs at this site')
    if (this.#copies.size >= RUNNING_MAX) throw new GodwitError('LIMIT_EXCEEDED', `${RUNNING_MAX} images already arrive at this site`)
    const control = Promise.withResolvers<Stream>()
    const copy: Copy = { plan, source, control, waiting: [], take: undefined, stop: new AbortController(), ended: Promise.resolve() }
    this.#copies.set(plan.migrationId, copy)
    copy.ended = this.#run(copy).finally(() => this.#copies.delete(plan.migrationId))
  }

  /** A relay stream; false when it is of no copy. */
  accept({ sessionId, index }: Join, stream: Stream): boolean {
    const copy = this.#copies.get(sessionId)
    if (!copy) return false
    if (copy.stop.signal.aborted) stream.reset('the copy has ended')
    else if (isControl(index)) copy.control.resolve(stream)
    else if (copy.take) copy.take(index, stream)
    else if (copy.waiting.length < copy.plan.streams) copy.waiting.push({ index, stream })
    else stream.reset('nothing is expected')
    return true
  }

  async close(): Promise<void> {
    this.#unwatch()
    const copies = [...this.#copies.values()]
    for (const { stop } of copies) stop.abort(new GodwitError('SITE_OFFLINE', 'the node is shutting down'))
    await Promise.all(copies.map(({ ended }) => ended))
  }

  async #run(copy: Copy): Promise<void> {
    const { log } = this.#options
    const { plan, stop } = copy
    let control: Stream | undefined
    let talk: Talk | undefined
    try {
      control = await within(copy.control.promise, { ms: SOURCE_APPEARS_MS, what: "the source's control stream", signal: stop.signal })
      const channel = await this.#open(copy, control)
      talk = createTalk(channel, { signal: stop.signal })
      const { root, sizeBytes, name } = await this.#receive(copy, channel, talk)
      log.info('image received', { image: name, from: plan.source, root, sizeBytes })
      await channel.finish()
    } catch (thrown) {
      const error = toGodwitError(thrown)
      log.warn('incoming image failed', { image: copy.name, from: plan.source, error })
      stop.abort(error)
      const said = talk?.send({ type: 'REFUSE', error: error.toJSON() }).catch(() => {})
      if (said) await Promise.race([said.then(() => sleep(LAST_WORD_MS)), sleep(2 * LAST_WORD_MS)])
      for (const { stream } of copy.waiting) stream.reset(error.code)
      control?.reset(error.code)
    } finally {
      if (copy.name !== undefined) this.#options.onProgress(copy.name, undefined)
    }
  }

  #open({ plan, source }: Copy, stream: Stream) {
    const { identity, onBreach } = this.#options
    const sides = { sourceCertificate: source.bytes, targetCertificate: identity.certificate, peerBoxPublic: source.certificate.boxPublic }
    return openChannel({ side: 'target', stream, plan: sessionPlanOf(plan), keys: identity.keys, ...sides, onBreach })
  }

  async #receive(copy: Copy, channel: Awaited<ReturnType<typeof openChannel>>, talk: Talk) {
    const { images, trust, onProgress } = this.#options
    const { plan, source, stop } = copy
    const image = await talk.expect(['IMAGE'])
    await this.#replaceEarlier(plan.source, image.name)
    copy.name = image.name
    return await receiveImage({
      ...{ plan, channel, talk, images, image, signal: stop.signal },
      onStream(take) {
        copy.take = take
        for (const { index, stream } of copy.waiting.splice(0)) take(index, stream)
      },
      onFigures: ({ bytesDone, bytesTotal }) => onProgress(image.name, { step: 'receiving', bytesDone, bytesTotal }),
      check: async () => void trust.verify(source.bytes, { role: 'site', id: plan.source }),
    })
  }

  async #replaceEarlier(source: string, name: string): Promise<void> {
    const earlier = [...this.#copies.values()].filter(copy => copy.plan.source === source && copy.name === name)
    for (const { stop } of earlier) stop.abort(new GodwitError('CONNECTION_LOST', 'a later attempt replaces this one'))
    await Promise.all(earlier.map(({ ended }) => ended))
  }

  #endUntrusted(): void {
    for (const { plan, source, stop } of this.#copies.values()) {
      try {
        this.#options.trust.verify(source.bytes, { role: 'site', id: plan.source })
      } catch (error) {
        stop.abort(toGodwitError(error))
      }
    }
  }
}
