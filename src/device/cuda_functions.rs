jumps! { cuda { } cublaslt { } cublas { } curand { } nvrtc { } }
