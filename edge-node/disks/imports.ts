// Imports of images that run, images that arrive from other sites, and the last imports that failed: an import goes on
// when whoever asked for it has left.
// Enters: requests, the progress of arriving images. Leaves: how far each is.
// Always holds: one import of a name at a time, IMPORTS_MAX in all; a failure can be read until the name is imported
// again, or FAILED_MAX later ones failed.
import { type ErrorBody, GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { ImageProgress } from './image-source.ts'
import type { Image, Images, ImportRequest } from './images.ts'

const IMPORTS_MAX = 2
const FAILED_MAX = 32

type ImportView = ({ name: string; state: 'importing' } & ImageProgress) | { name: string; state: 'failed'; error: ErrorBody }
type ImageView = Image | ImportView

export type Imports = {
  /** Images, imports that run, and imports that failed where there is no image of the name. By name. */
  list(): Promise<ImageView[]>
  /** IMAGE_UNKNOWN. */
  show(name: string): Promise<ImageView>
  /** Begins an import; IMAGE_BUSY, LIMIT_EXCEEDED. What goes wrong later is shown. */
  begin(request: ImportRequest): ImportView
  /** How far an image is that another site sends; undefined: it has ended. */
  arriving(name: string, progress: ImageProgress | undefined): void
  /** Ends an import, forgets a failure, removes an image. IMAGE_UNKNOWN, IMAGE_IN_USE. */
  remove(name: string): Promise<void>
  /** Ends all imports. */
  close(): Promise<void>
}

type Job = { progress: ImageProgress; stop: AbortController; ended: Promise<void> }

export function createImports(images: Images, log: Log): Imports {
  const jobs = new Map<string, Job>()
  const failed = new Map<string, ErrorBody>()
  const arriving = new Map<string, ImageProgress>()
  const viewOf = (name: string): ImportView | undefined => {
    const progress = jobs.get(name)?.progress ?? arriving.get(name)
    if (progress) return { name, state: 'importing', ...progress }
    const error = failed.get(name)
    return error && { name, state: 'failed', error }
  }
  const fail = (name: string, error: ErrorBody) => {
    failed.delete(name)
    failed.set(name, error)
    for (const oldest of failed.keys()) if (failed.size > FAILED_MAX) failed.delete(oldest)
  }
  return {
    async list() {
      const there = await images.list()
      const running = new Set([...jobs.keys(), ...arriving.keys()])
      const others = [...running, ...failed.keys()].filter(name => running.has(name) || !there.some(image => image.name === name))
      const views = [...there.filter(({ name }) => !running.has(name)), ...[...new Set(others)].map(name => viewOf(name)!)]
      return views.sort((a, b) => (a.name < b.name ? -1 : 1))
    },
    show: async name => viewOf(name) ?? (await images.show(name)),
    begin(request) {
      const { name } = request
      if (jobs.has(name)) throw new GodwitError('IMAGE_BUSY', `image ${name} is already being imported`)
      if (jobs.size >= IMPORTS_MAX) throw new GodwitError('LIMIT_EXCEEDED', `${IMPORTS_MAX} imports already run at this site`)
      const stop = new AbortController()
      const job: Job = { progress: { step: 'reading', bytesDone: 0 }, stop, ended: Promise.resolve() }
      const onProgress = (progress: ImageProgress) => {
        job.progress = progress
      }
      failed.delete(name)
      jobs.set(name, job)
      job.ended = images
        .import(request, { signal: stop.signal, onProgress })
        .then(({ root, sizeBytes }) => log.info('image imported', { image: name, root, sizeBytes }))
        .catch(thrown => {
          const error = toGodwitError(thrown)
          fail(name, error.toJSON())
          log.warn('image import failed', { image: name, error })
        })
        .finally(() => jobs.delete(name))
      return viewOf(name)!
    },
    arriving(name, progress) {
      if (progress) arriving.set(name, progress)
      else arriving.delete(name)
    },
    async remove(name) {
      const job = jobs.get(name)
      if (job) {
        job.stop.abort(new GodwitError('IMAGE_CANCELLED', `the import of ${name} was cancelled`))
        await job.ended
        failed.delete(name)
        return
      }
      if (failed.delete(name)) return
      await images.remove(name)
    },
    async close() {
      const all = [...jobs.values()]
      for (const { stop } of all) stop.abort(new GodwitError('SITE_OFFLINE', 'the node is shutting down'))
      await Promise.all(all.map(({ ended }) => ended))
    },
  }
}
