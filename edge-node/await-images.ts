// Images that travel with a VM: the target lacks one that a local disk stands on, and its source sends it first.
// Enters: what the VM needs. Leaves: the images at this site, or the error that ends the migration.
// Always holds: only an image whose name is free here is asked for; what is waited for is the image of this name and
// root, whoever sends it; the source ends the waiting when it gives up, as it ends the migration.
import { eventually } from '../ops/deadline.ts'
import { GodwitError } from '../wire/errors.ts'
import type { ReserveOptions } from './migration/target-options.ts'
import type { Registry } from './registry/registry.ts'
import type { VmNeeds } from './vm/preflight.ts'

const ARRIVAL_MAX_MS = 12 * 3_600_000
const LOOK_MS = 200

export async function awaitImages(registry: Registry, needs: VmNeeds, { askImages, signal, onProgress }: ReserveOptions): Promise<void> {
  const missing = await registry.missingImages(needs)
  if (missing.length === 0) return
  await askImages(missing.map(({ name }) => name))
  for (const { name, root } of missing) {
    const look = async () => {
      const view = await registry.imports.show(name).catch(() => undefined)
      if (view?.state === 'importing')
        onProgress?.({ file: name, bytesDone: view.bytesDone, bytesTotal: view.bytesTotal ?? 0, phase: 'images' })
      if (view?.state !== 'ready') return undefined
      if (view.root !== root) throw new GodwitError('IMAGE_EXISTS', `image ${name} came to this site with another content meanwhile`)
      return true
    }
    await eventually(look, { ms: ARRIVAL_MAX_MS, what: `image ${name}`, everyMs: LOOK_MS, signal, code: 'MIGRATION_TIMEOUT' })
  }
}
