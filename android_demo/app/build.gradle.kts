plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
}

android {
    namespace = "org.kdtflite.demo"
    compileSdk = 34

    defaultConfig {
        applicationId = "org.kdtflite.demo"
        minSdk = 24
        targetSdk = 34
        versionCode = 1
        versionName = "0.1.0"
    }

    buildTypes {
        release {
            isMinifyEnabled = true
            proguardFiles(
                getDefaultProguardFile("proguard-android-optimize.txt"), "proguard-rules.pro",
            )
        }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }

    kotlinOptions {
        jvmTarget = "1.8"
    }

    // The interpreter maps the model into memory, which does not work with a compressed entry.
    androidResources {
        noCompress += "tflite"
    }

    // The model with its golden vectors; `make android` writes them there.
    sourceSets["main"].assets.srcDir("../build/assets")
}

dependencies {
    implementation(project(":core"))
    implementation(libs.litert)
}
