// edge-node/vm/files.ts in the simulation: VMs without disks.
export const checkSpecFiles = async (): Promise<void> => {}
export const sharedFolderId = async (): Promise<string> => 'shared'
export const specFileFacts = async () => ({ 'readonly/boot.img': { bytes: 1 } })
export const specFilePath = (): undefined => undefined
