// Images travel between sites: by order of an operator, and with a VM whose target lacks its image. What a site has
// already does not travel again.
import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { eventually } from '../../ops/deadline.ts'
import type { ImageCopyView, ImageView } from '../../wire/node-api.ts'
import { MIB } from '../../wire/units.ts'
import { beginSoon } from '../support/disk-scene.ts'
import { type Lab, type LabOptions, type LabSite, labMissing, openLab } from '../support/lab.ts'
import { assert, suite } from '../support/suite.ts'
import { startWriter } from '../support/writer-guest.ts'

const test = suite('e2e/image-copy', { ms: 240_000 })
const skip = labMissing() || (spawnSync('qemu-nbd', ['--version']).status !== 0 && 'qemu-utils is not installed')

const COPY_MS = 90_000
/** Random bytes of the image below: they travel as they are. */
const CONTENT_BYTES = 12 * MIB

/** Payloads of a MiB on four streams: of what has passed the valve, so much may be in parts of them. */
const ARRIVED_BYTES = CONTENT_BYTES / 4
/** All of it, and once more what had left the source and was not at the target. */
const RESUMED_BYTES_MAX = 1.05 * (2 * CONTENT_BYTES - ARRIVED_BYTES)

/** 64 MiB: random bytes, a hole, random bytes, a hole with a last chunk that is no whole one. */
function content(): Buffer {
  const bytes = Buffer.alloc(64 * MIB + 512)
  randomBytes(CONTENT_BYTES / 2).copy(bytes, 0)
  randomBytes(CONTENT_BYTES / 2).copy(bytes, 40 * MIB + 512)
  return bytes
}

async function untilOver<T>(look: () => Promise<T | undefined>, what: string): Promise<T> {
  return await eventually(look, { ms: COPY_MS, what, everyMs: 50 })
}

async function importAt(site: LabSite, name: string, bytes: Buffer): Promise<void> {
  const from = join(site.dir, `${name}.raw`)
  await writeFile(from, bytes)
  await site.api('POST', '/v1/images', { name, from, format: 'raw' })
  const look = async () => {
    const view = await site.api<ImageView>('GET', `/v1/images/${name}`)
    assert.not.equal(view.state, 'failed', JSON.stringify(view))
    return view.state === 'ready' ? true : undefined
  }
  await untilOver(look, `image ${name}`)
  await rm(from)
}

const begin = (site: LabSite, name: string, to: string) => site.api<ImageCopyView>('POST', `/v1/images/${name}/copies`, { to })
const ended = (site: LabSite, name: string, to: string) =>
  untilOver(async () => {
    const view = await site.api<ImageCopyView>('GET', `/v1/images/${name}/copies/${to}`)
    return view.state === 'copying' ? undefined : view
  }, `the copy of ${name} to ${to}`)

async function copy(site: LabSite, name: string, to: string): Promise<ImageCopyView> {
  await begin(site, name, to)
  return await ended(site, name, to)
}

async function hasImage(site: LabSite, name: string, bytes: Buffer): Promise<void> {
  const view = await site.api<ImageView>('GET', `/v1/images/${name}`)
  assert.is(view.state, 'ready')
  assert.ok((await readFile(join(site.imagesDir, name))).equals(bytes), 'the content is the same')
  assert.ok((await stat(join(site.imagesDir, name))).blocks * 512 <= CONTENT_BYTES + MIB, 'holes stay holes')
  assert.equal(await readdir(join(site.imagesDir, '.copies')), [], 'nothing is left of the transfer')
}

/** Begins a copy from a to b, and holds it when b has at least ARRIVED_BYTES of it. */
async function beginHalf(lab: Lab): Promise<void> {
  lab.valve.hold(index => index >= 2, { afterBytes: (CONTENT_BYTES * 2) / 3 })
  await begin(lab.site('a'), 'base', 'b')
  await lab.valve.reached()
  const look = async () => {
    // It is not listed before the target has looked at it.
    const view = await lab
      .site('b')
      .api<ImageView>('GET', '/v1/images/base')
      .catch(() => undefined)
    return view?.state === 'importing' && view.bytesDone >= ARRIVED_BYTES ? true : undefined
  }
  await untilOver(look, 'a part of the image at b')
}

/** A lab that counts what the gateway relays on page streams, and looks for a text in it. */
async function countingLab(options: LabOptions): Promise<{ lab: Lab; bytes: () => number; sawText: () => boolean }> {
  let bytes = 0
  let sawText = false
  const tap: LabOptions['tap'] = (_, index, direction, chunk) => {
    if (index >= 2 && direction === 'source-to-target') bytes += chunk.length
    sawText ||= Buffer.from(chunk).includes('secret-image')
  }
  return { lab: await openLab({ tap, ...options }), bytes: () => bytes, sawText: () => sawText }
}

test(
  'an image is copied once, the gateway reads neither name nor content, and another content of that name is refused',
  async () => {
    const { lab, bytes, sawText } = await countingLab({ sites: ['a', 'b'] })
    await using _ = lab
    const [a, b] = [lab.site('a'), lab.site('b')]
    const image = content()
    image.write('secret-image', 1000)
    await importAt(a, 'secret-image', image)
    const first = await copy(a, 'secret-image', 'b')
    assert.is(first.state, 'copied', `${JSON.stringify(first)}\n${lab.logTail()}`)
    await hasImage(b, 'secret-image', image)
    const [here, there] = await Promise.all(
      [a, b].map(site => site.api<Extract<ImageView, { root: string }>>('GET', '/v1/images/secret-image')),
    )
    assert.equal([there!.root, there!.copiedFrom, here!.copiedFrom], [here!.root, 'a', undefined])
    assert.ok(bytes() >= CONTENT_BYTES && bytes() < 1.1 * CONTENT_BYTES, `${bytes()} bytes for ${CONTENT_BYTES}`)
    const before = bytes()
    assert.is((await copy(a, 'secret-image', 'b')).state, 'copied')
    assert.is(bytes(), before, 'what is there does not travel again')
    assert.is(sawText(), false)

    image.write('other', 2000)
    await b.api('DELETE', '/v1/images/secret-image')
    await importAt(b, 'secret-image', image)
    assert.is((await copy(a, 'secret-image', 'b')).error?.code, 'IMAGE_EXISTS')
    assert.is((await copy(a, 'secret-image', 'nowhere')).error?.code, 'SITE_UNKNOWN')
    assert.is((await copy(a, 'secret-image', 'a')).error?.code, 'SITE_SAME')
    assert.is((await copy(a, 'none', 'b')).error?.code, 'IMAGE_UNKNOWN')
  },
  { skip },
)

test(
  'a copy goes on after a cut link and after the gateway was restarted, and sends nothing twice but what was on its way',
  async () => {
    const { lab, bytes } = await countingLab({ sites: ['a', 'b'] })
    await using _ = lab
    const [a, b] = [lab.site('a'), lab.site('b')]
    const image = content()
    await importAt(a, 'base', image)
    for (const interrupt of [() => lab.sever(), () => lab.stopGateway().then(lab.startGateway)]) {
      const before = bytes()
      await beginHalf(lab)
      await interrupt()
      lab.valve.open()
      const view = await ended(a, 'base', 'b')
      assert.is(view.state, 'copied', `${JSON.stringify(view)}\n${lab.logTail()}`)
      await hasImage(b, 'base', image)
      const sent = bytes() - before
      assert.ok(sent < RESUMED_BYTES_MAX, `${sent} bytes for ${CONTENT_BYTES}`)
      await b.api('DELETE', '/v1/images/base')
    }
  },
  { skip },
)

test(
  'a target that is killed while an image arrives continues it when it is back; so does a source, when it is asked again',
  async () => {
    const { lab, bytes } = await countingLab({
      engine: 'tls',
      sites: [
        ['a', { isProcess: true }],
        ['b', { isProcess: true }],
      ],
    })
    await using _ = lab
    const [a, b] = [lab.site('a'), lab.site('b')]
    const image = content()
    await importAt(a, 'base', image)
    await beginHalf(lab)
    await b.kill()
    lab.valve.open()
    await b.start()
    const view = await ended(a, 'base', 'b')
    assert.is(view.state, 'copied', `${JSON.stringify(view)}\n${lab.logTail()}`)
    await hasImage(b, 'base', image)
    assert.ok(bytes() < RESUMED_BYTES_MAX, `${bytes()} bytes for ${CONTENT_BYTES}`)

    await b.api('DELETE', '/v1/images/base')
    const before = bytes()
    await beginHalf(lab)
    await a.kill()
    lab.valve.open()
    await a.start()
    const again = await copy(a, 'base', 'b')
    assert.is(again.state, 'copied', `${JSON.stringify(again)}\n${lab.logTail()}`)
    await hasImage(b, 'base', image)
    assert.ok(bytes() - before < RESUMED_BYTES_MAX, `${bytes() - before} bytes for ${CONTENT_BYTES}`)
  },
  { skip },
)

test(
  'a copy that is cancelled leaves no image; a site takes images only from sites that its rules name',
  async () => {
    const config = { accept: [{ from: ['a'], vms: ['*'] }] }
    await using lab = await openLab({ sites: ['a', ['b', { config }], 'c'] })
    const [a, b, c] = ['a', 'b', 'c'].map(name => lab.site(name)) as [LabSite, LabSite, LabSite]
    for (const site of [a, c]) await importAt(site, 'base', content())
    assert.is((await copy(c, 'base', 'b')).error?.code, 'MIGRATION_DENIED')
    lab.valve.hold(index => index >= 2, { afterBytes: MIB })
    await begin(a, 'base', 'b')
    await lab.valve.reached()
    await a.api('DELETE', '/v1/images/base/copies/b')
    lab.valve.open()
    assert.is((await ended(a, 'base', 'b')).error?.code, 'IMAGE_CANCELLED')
    const gone = async () => ((await b.api<{ images: ImageView[] }>('GET', '/v1/images')).images.length === 0 ? true : undefined)
    await untilOver(gone, 'the end of the copy at the target')
    assert.is((await readdir(join(b.imagesDir, '.copies'))).length, 1, 'what came waits for a later copy')
    await b.api('DELETE', '/v1/images/base')
    assert.equal(await readdir(join(b.imagesDir, '.copies')), [])
  },
  { skip },
)

test(
  'a VM moves to a site without its image: the image comes first, and the next VM needs it no more',
  async () => {
    await using lab = await openLab({ sites: ['a', 'b'] })
    const guest = await startWriter(lab, 'a', { imageAt: ['a'] })
    const phases = new Set<string>()
    const id = await beginSoon(lab, { vm: guest.name, to: 'b' })
    const record = await lab.until(id, ({ progress, outcome }) => {
      if (progress) phases.add(progress.phase)
      return outcome !== null
    })
    assert.is(record.outcome, 'completed', `${JSON.stringify(record.error)}\n${lab.logTail()}`)
    const [here, there] = await Promise.all(['a', 'b'].map(name => lab.site(name).node.registry.images.show('writer')))
    assert.equal([there!.root, there!.state, there!.copiedFrom], [here!.root, 'ready', 'a'])
    await guest.assertWrites('b')
    await guest.stopAndCompare('b')
  },
  { skip },
)

test.run()
