// Registries for tests: opened over a test site, with a running VM where one is wanted. Enters: a site
// (../vm/echo-guest.ts).
// Leaves: a registry that ends its QEMUs when it is disposed.
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { VmRecordState } from '../../../edge-node/registry/records.ts'
import { openRegistry, type Registry, type RegistryOptions } from '../../../edge-node/registry/registry.ts'
import { killLeftover } from '../../../edge-node/vm/runtime-folder.ts'
import { eventually } from '../../../ops/deadline.ts'
import { measureForGood } from '../../support/qemu-abilities.ts'
import { echoSpec, heard, qemuMissing, type TestSite } from '../vm/echo-guest.ts'

/** Why no test with a real QEMU can run here, or undefined. */
export const skip = qemuMissing()

export type Opened = Registry & AsyncDisposable

// Measuring what QEMU can do takes seconds where /dev/kvm hangs, and has a test of its own: once for each file of
// tests.
let measured: Promise<string> | undefined
async function measure(site: TestSite): Promise<string> {
  const cacheFile = join(site.dir, 'abilities.json')
  await measureForGood(cacheFile)
  return readFile(cacheFile, 'utf8')
}

export async function open(site: TestSite, more: Partial<RegistryOptions> = {}): Promise<Opened> {
  if (!skip) {
    measured ??= measure(site)
    await writeFile(join(site.stateDir, 'qemu-abilities.json'), await measured)
  }
  const registry = await openRegistry({ stateDir: site.stateDir, imagesDir: site.imagesDir, ...more })
  const dispose = async () => {
    await registry.close()
    const vms = join(site.stateDir, 'vms')
    for (const name of await readdir(vms)) await killLeftover(join(vms, name))
  }
  return Object.assign(registry, { [Symbol.asyncDispose]: dispose })
}

export const comesTo = (registry: Registry, name: string, state: VmRecordState | 'suspended') =>
  eventually(() => (registry.get(name).state === state ? true : undefined), { ms: 10_000, what: `${name} ${state}`, everyMs: 20 })

/** A registry with a running VM named vm-1. */
export async function running(site: TestSite): Promise<Opened> {
  const registry = await open(site)
  await registry.create(echoSpec('vm-1'))
  await registry.start('vm-1')
  await heard(registry.console('vm-1').follow(), 'G')
  return registry
}

/** At the console of vm-1. */
export const type = (registry: Registry, keys: string) => registry.console('vm-1').write(Buffer.from(keys))
