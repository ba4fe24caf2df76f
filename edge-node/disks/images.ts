// The site's images: immutable bases that VMs' disks stand on. Enters: files and URLs to import, images that other
// sites send. Leaves: images by name, each with the Merkle root of its content. An image is one raw file with holes,
// `imagesDir/NAME`, and one small file that says what it is, `imagesDir/.images/NAME.json`.
// Always holds: an image is there whole or not at all (written aside, fsynced, renamed); its content is what its root
// says, as of the file that the name led to when that was found: a file that was changed or replaced since is
// IMAGE_CHANGED, never used; a broken import leaves nothing.
import { randomBytes } from 'node:crypto'
import { chmod, chown, mkdir, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { exists } from '../../ops/files.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { checkJson, z } from '../../wire/schema.ts'
import { type FileDigests, identityOf, isSameIdentity } from './digests.ts'
import { assertRoom, fetchSource, formatOf, type ImageProgress, nameOf, type Steps } from './image-source.ts'
import { IncomingImage } from './incoming-image.ts'
import { convertToRaw, IMPORT_FORMATS, type ImportFormat, imageInfo, type ToolUser } from './tools.ts'

const FACTS_DIR = '.images'
const STAGE_DIR = '.import'
/** What came of images that are not whole, as NAME.ROOT. */
const COPIES_DIR = '.copies'
/** A dot and a root in hex. */
const ROOT_ENDING = 65
const COPY_KEPT_MS = 7 * 24 * 3_600_000
const ImageName = z.string().regex(/^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/, 'must be a name of A-Z a-z 0-9 . _ -, not starting with a dot')

const Identity = z.object({ dev: z.string(), ino: z.string(), bytes: z.int().min(0), mtimeNs: z.string(), ctimeNs: z.string() })
const Facts = z.object({
  version: z.literal(1),
  name: ImageName,
  root: z.string().regex(/^[0-9a-f]{64}$/),
  sizeBytes: z.int().min(0),
  /** What was imported: the last part of its path or URL. */
  source: z.string().max(300),
  sourceFormat: z.enum(IMPORT_FORMATS),
  sourceSha256: z.string().regex(/^[0-9a-f]{64}$/),
  importedAt: z.string().max(40),
  /** The site that sent it. */
  copiedFrom: z.string().max(64).optional(),
  /** The file as it was when the root was found. */
  identity: Identity,
})
type Facts = z.output<typeof Facts>

export type Image = Omit<Facts, 'version' | 'identity'> & {
  /** What the file takes on the disk. */
  allocatedBytes: number
  /** `changed`: the file is not the one that was imported; `missing`: it is gone. */
  state: 'ready' | 'changed' | 'missing'
}

export type ImportRequest = {
  name: string
  /** An absolute path here, or an http(s) URL. */
  from: string
  /** Default: qcow2 where the file begins like one, raw otherwise. */
  format?: ImportFormat | undefined
  /** Of the file as it comes, in hex. */
  sha256?: string | undefined
}

/** What another site says of an image that it sends. */
type ImageOffer = Pick<Facts, 'name' | 'root' | 'sizeBytes' | 'source' | 'sourceFormat' | 'sourceSha256'> & { copiedFrom: string }

export type Images = {
  list(): Promise<Image[]>
  /** IMAGE_UNKNOWN. */
  show(name: string): Promise<Image>
  /**
   * Takes a copy. Importing the same content under the same name again gives what is there. IMAGE_EXISTS,
   * IMAGE_INVALID, IMAGE_MISMATCH, DISK_FULL, CONFIG_UNREADABLE; the signal's reason.
   */
  import(request: ImportRequest, options?: { signal?: AbortSignal; onProgress?: (progress: ImageProgress) => void }): Promise<Image>
  /**
   * Takes an image from another site: `work` fills it. An image of this name and root that is here already is not
   * received again. When `work` fails, what came is kept for the next attempt. IMAGE_EXISTS, IMAGE_BUSY; what `work`
   * throws.
   */
  receive(offer: ImageOffer, work: (incoming: IncomingImage) => Promise<void>): Promise<Image>
  /** IMAGE_UNKNOWN, IMAGE_IN_USE. */
  remove(name: string): Promise<void>
  /**
   * The path and root of an image whose file is the one that was imported. IMAGE_UNKNOWN, IMAGE_CHANGED; the signal's
   * reason.
   */
  use(name: string, signal?: AbortSignal): Promise<{ path: string; root: string; sizeBytes: number }>
}

export type ImagesOptions = {
  imagesDir: string
  digests: FileDigests
  /** Who runs qemu-img; absent: this process's user. */
  user?: (() => Promise<ToolUser>) | undefined
  /** Names of the VMs that use an image. */
  usersOf: (name: string) => readonly string[]
  /** Unix ms. */
  now: () => number
  fetch?: typeof fetch
  log: Log
}

/** Clears what an interrupted import left, and what came of copies that nobody has continued for a week. */
export async function openImages(options: ImagesOptions): Promise<Images> {
  const { imagesDir, usersOf } = options
  await rm(join(imagesDir, STAGE_DIR), { recursive: true, force: true })
  await dropCopies(imagesDir, async path => (await stat(path)).mtimeMs < options.now() - COPY_KEPT_MS)
  const pathOf = (name: string) => join(imagesDir, name)
  const factsPath = (name: string) => join(imagesDir, FACTS_DIR, `${name}.json`)
  /** One import or removal of a name at a time. */
  const busy = new Set<string>()

  const read = async (name: string): Promise<Facts | undefined> => {
    try {
      return checkJson(Facts, await readFile(factsPath(name)), { what: `image ${name}`, code: 'IMAGE_INVALID' })
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
      throw error
    }
  }
  const known = async (name: string): Promise<Facts> => {
    const facts = ImageName.safeParse(name).success ? await read(name) : undefined
    if (!facts) throw new GodwitError('IMAGE_UNKNOWN', `there is no image ${name} at this site`)
    return facts
  }
  const view = async ({ version: _, identity, ...facts }: Facts): Promise<Image> => {
    const found = await stat(pathOf(facts.name), { bigint: true }).catch(() => undefined)
    const state = !found ? 'missing' : isSameIdentity(identityOf(found), identity) ? 'ready' : 'changed'
    return { ...facts, allocatedBytes: Number(found?.blocks ?? 0n) * 512, state }
  }
  const alone = async <T>(name: string, work: () => Promise<T>): Promise<T> => {
    if (busy.has(name)) throw new GodwitError('IMAGE_BUSY', `image ${name} is being imported or removed`)
    busy.add(name)
    try {
      return await work()
    } finally {
      busy.delete(name)
    }
  }
  return {
    async list() {
      const names = await readdir(join(imagesDir, FACTS_DIR)).catch(() => [])
      const all = await Promise.all(
        names.filter(name => name.endsWith('.json')).map(name => read(name.slice(0, -5)).catch(() => undefined)),
      )
      return await Promise.all(
        all
          .filter(facts => facts !== undefined)
          .sort((a, b) => (a.name < b.name ? -1 : 1))
          .map(view),
      )
    },
    show: async name => await view(await known(name)),
    async import(request, { signal, onProgress = () => {} } = {}) {
      const { name } = request
      const wrong = ImageName.safeParse(name).error
      if (wrong) throw new GodwitError('IMAGE_INVALID', `the name '${name.slice(0, 200)}' ${wrong.issues[0]?.message}`)
      return await alone(name, async () => view(await importImage(options, request, await read(name), { signal, onProgress })))
    },
    receive: (offer, work) => alone(offer.name, async () => view(await receiveImage(options, offer, await read(offer.name), work))),
    remove: name =>
      alone(name, async () => {
        const dropped = await dropCopies(imagesDir, path => basename(path).slice(0, -ROOT_ENDING) === name)
        if (dropped > 0 && !(await read(name))) return
        await known(name)
        const users = usersOf(name)
        if (users.length > 0) throw new GodwitError('IMAGE_IN_USE', `image ${name} is used by ${users.slice(0, 5).join(', ')}`)
        await rm(factsPath(name))
        await rm(pathOf(name), { force: true })
      }),
    async use(name, signal) {
      const { root, sizeBytes, identity } = await known(name)
      const path = pathOf(name)
      const file = await open(path).catch(() => undefined)
      if (!file) throw new GodwitError('IMAGE_CHANGED', `${path}, the file of image ${name}, is gone`)
      try {
        const now = identityOf(await file.stat({ bigint: true }))
        // Another inode or time: perhaps a restored backup. Its content decides.
        const isSame = isSameIdentity(now, identity) || (await options.digests.root(file.fd, name, { signal })) === root
        if (!isSame) throw new GodwitError('IMAGE_CHANGED', `${path} has another content than image ${name} had when it was imported`)
        return { path, root, sizeBytes }
      } finally {
        await file.close()
      }
    },
  }
}

async function importImage(options: ImagesOptions, request: ImportRequest, earlier: Facts | undefined, steps: Steps): Promise<Facts> {
  const { imagesDir } = options
  const runAs = await options.user?.()
  if (!earlier && (await exists(join(imagesDir, request.name))))
    throw new GodwitError('IMAGE_EXISTS', `there is a file ${request.name} in the images folder, which is no image`, {
      hint: 'choose another name, or import that file under another one',
    })
  const dir = join(imagesDir, STAGE_DIR, randomBytes(8).toString('hex'))
  await mkdir(dir, { recursive: true, mode: 0o700 })
  try {
    const sourceSha256 = await fetchSource({ from: request.from, to: join(dir, 'source'), get: options.fetch, ...steps })
    if (request.sha256 !== undefined && request.sha256.toLowerCase() !== sourceSha256)
      throw new GodwitError('IMAGE_MISMATCH', `the SHA-256 of ${nameOf(request.from)} is ${sourceSha256}, not ${request.sha256}`)
    for (const path of runAs ? [dir, join(dir, 'source')] : []) await chown(path, runAs!.uid, runAs!.gid)
    const made = await convert(dir, request, { ...options, runAs }, steps)
    if (earlier && earlier.root !== made.root) throw otherContent(request.name)
    // VMs may have the file open: it is replaced only where it is no longer the one that was imported.
    if (earlier && (await isAsImported(join(imagesDir, request.name), earlier))) return earlier
    const facts = { version: 1 as const, name: request.name, ...made, source: nameOf(request.from), sourceSha256 }
    return await publish(options, join(dir, 'image'), { ...facts, importedAt: new Date(options.now()).toISOString() })
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}

async function receiveImage(
  options: ImagesOptions,
  offer: ImageOffer,
  earlier: Facts | undefined,
  work: (incoming: IncomingImage) => Promise<void>,
): Promise<Facts> {
  const { name, root } = offer
  const path = join(options.imagesDir, name)
  const facts = { version: 1 as const, ...offer, importedAt: new Date(options.now()).toISOString() }
  if (earlier && earlier.root !== root) throw otherContent(name)
  if (earlier && (await isAsImported(path, earlier))) return earlier
  // A file that an operator has put there under this name: an image when it has this content.
  if (!earlier && (await exists(path))) {
    await using file = await open(path)
    if ((await options.digests.root(file.fd, name)) !== root) throw otherContent(name)
    return await writeFacts(options, facts)
  }
  const dir = join(options.imagesDir, COPIES_DIR)
  await mkdir(dir, { recursive: true, mode: 0o700 })
  const part = join(dir, `${name}.${root}`)
  const incoming = new IncomingImage(part, offer)
  try {
    await work(incoming)
    await incoming.finish()
  } finally {
    await incoming.close()
  }
  await chmod(part, 0o444)
  return await publish(options, part, facts)
}

const otherContent = (name: string) =>
  new GodwitError('IMAGE_EXISTS', `image ${name} is there with another content: images never change`, {
    hint: 'use another name for one of the two, such as one with a date or version',
  })

async function convert(
  dir: string,
  request: ImportRequest,
  options: ImagesOptions & { runAs: ToolUser | undefined },
  { signal, onProgress }: Steps,
) {
  const tool = { dir, runAs: options.runAs, signal }
  const format = request.format ?? (await formatOf(join(dir, 'source')))
  const { sizeBytes } = await imageInfo('source', format, tool)
  if (sizeBytes === 0) throw new GodwitError('IMAGE_INVALID', 'the image is empty')
  const { blocks } = await stat(join(dir, 'source'))
  // A compressed image grows; its whole size is more than it needs. What it takes is seen while it is written.
  await assertRoom(dir, Math.min(sizeBytes, blocks * 512))
  const onBytes = (bytesDone: number) => onProgress({ step: 'converting', bytesDone, bytesTotal: sizeBytes })
  await convertToRaw({ from: 'source', format, to: 'image', sizeBytes }, { ...tool, onBytes })
  await rm(join(dir, 'source'))
  const path = join(dir, 'image')
  if (options.runAs) await chown(path, process.getuid!(), process.getgid!())
  await chmod(path, 0o444)
  await using file = await open(path, 'r')
  await file.sync()
  const root = await options.digests.root(file.fd, request.name, {
    signal,
    onProgress: bytesDone => onProgress({ step: 'hashing', bytesDone, bytesTotal: sizeBytes }),
  })
  return { root, sizeBytes: (await file.stat()).size, sourceFormat: format }
}

/** The facts are written last: an image without them is not one. */
async function publish(options: ImagesOptions, made: string, facts: Omit<Facts, 'identity'>): Promise<Facts> {
  await rename(made, join(options.imagesDir, facts.name))
  await syncFolder(options.imagesDir)
  return await writeFacts(options, facts)
}

async function writeFacts({ imagesDir, digests }: ImagesOptions, facts: Omit<Facts, 'identity'>): Promise<Facts> {
  const identity = identityOf(await stat(join(imagesDir, facts.name), { bigint: true }))
  // The new name has changed its times: nobody has to read it again for that.
  await digests.learn(identity, facts.root)
  const whole: Facts = { ...facts, identity }
  const folder = join(imagesDir, FACTS_DIR)
  await mkdir(folder, { recursive: true, mode: 0o755 })
  const aside = join(folder, `${facts.name}.json.new`)
  await using file = await open(aside, 'w', 0o644)
  await file.writeFile(`${JSON.stringify(whole, null, 2)}\n`)
  await file.sync()
  await rename(aside, join(folder, `${facts.name}.json`))
  await syncFolder(folder)
  return whole
}

/** Gives how many. */
async function dropCopies(imagesDir: string, isToGo: (path: string) => boolean | Promise<boolean>): Promise<number> {
  const dir = join(imagesDir, COPIES_DIR)
  let dropped = 0
  for (const name of await readdir(dir).catch(() => [])) {
    if (!(await isToGo(join(dir, name)))) continue
    await rm(join(dir, name), { force: true })
    dropped++
  }
  return dropped
}

async function syncFolder(path: string): Promise<void> {
  await using folder = await open(path)
  await folder.sync()
}

async function isAsImported(path: string, { identity }: Facts): Promise<boolean> {
  const found = await stat(path, { bigint: true }).catch(() => undefined)
  return found !== undefined && isSameIdentity(identityOf(found), identity)
}
